# Everything from an empty clone: `make test` and `make bench` make the virtual environment, build and run.
# Needs python3 (3.10 to 3.13) with its venv module and C headers, and g++ 11 or newer
# (Debian: apt-get install python3-venv python3-dev g++ make).

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python

# Pinned, and the CPU build where the index has it. On an x86-64 Linux the default index serves the CUDA build of torch,
# with gigabytes of packages that are of no use here; to get the CPU build from PyTorch's own index:
#   make PIP_FLAGS="--extra-index-url <the CPU index named on pytorch.org>" TORCH="torch==2.13.0+cpu" test
# To use a torch that is already there: make VENV=/path/to/environment, which must hold requirements-dev.txt too.
TORCH     ?= torch==2.13.0
PIP_FLAGS ?=
PIP       := $(PY) -m pip install --disable-pip-version-check --no-input $(PIP_FLAGS)

BENCH ?= --quick --out out
TESTS ?= tests
PYTEST_FLAGS ?= -n 2

CPP := $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Another torch, for `make compat`: the same binary must serve it. (Its build with CUDA takes gigabytes.) Error texts
# are those of the pinned torch, so test_errors.py is not among these.
COMPAT ?= torch==2.10.0
COMPAT_TESTS ?= tests/test_reference.py tests/test_loop.py tests/test_ops.py tests/test_gradcheck.py tests/test_modules.py \
    tests/test_packed.py tests/test_onnx.py tests/test_exported.py tests/test_stack.py tests/test_recompute.py tests/test_plan.py

.PHONY: help venv build test bench gpu tables docs lint format sanitize simt compat cuda-check clean
help:
	@echo "make test      build and run the test suite"
	@echo "make bench     build and run the quick benchmark (BENCH='--grid --out out' for all of it)"
	@echo "make gpu       on a machine with a CUDA device: build, suite, sanitizers, benchmark (benchmarks/gpu.sh)"
	@echo "make tables    tables and picture of README.md and docs/performance.md from RESULTS=file.json"
	@echo "make docs      the API reference from docstrings, in docs/api"
	@echo "make build     compile the C++ in place, only what changed"
	@echo "make lint      ruff, clang-format, mypy;  make format  lay out anew"
	@echo "make sanitize  build and run the loop tests under the address, undefined and thread sanitizers"
	@echo "make simt      run the CUDA kernels on the host, where there is no GPU"
	@echo "make compat    run the core tests under COMPAT='torch==...' on the binary built under the pinned torch"
	@echo "make cuda-check  compile the CUDA sources and tell registers and spills; needs nvcc, no GPU and no torch"
	@echo "make clean     remove what was built;  make distclean  the virtual environment too"

venv: $(VENV)/.ready
$(VENV)/.ready: requirements-dev.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "fused_rnn needs Python 3.10 or newer"'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "no venv module: on Debian, apt-get install python3-venv"; exit 1; }
	@$(PY) -c 'import os, sysconfig, sys; h = sysconfig.get_path("include") + "/Python.h"; \
	    os.path.exists(h) or sys.exit("no " + h + ": on Debian, apt-get install python3-dev")'
	$(PIP) $(TORCH)
	$(PIP) -r requirements-dev.txt
	touch $@

build: venv
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) setup.py --quiet build_ext --inplace

test: build
	$(PY) -m pytest $(PYTEST_FLAGS) $(TESTS)

bench: build
	$(PY) -m benchmarks $(BENCH)

# With the python and nvcc that are there: it makes no environment and installs nothing.
gpu:
	PYTHON="$(PYTHON)" bash benchmarks/gpu.sh

tables: venv
	$(PY) -m benchmarks --table $(RESULTS) --update README.md docs/performance.md \
	    --plot docs/pictures/performance.png

docs: build
	PYTHONPATH=. $(PY) -m sphinx -q -W -E -a -b markdown -d out/doctrees docs/api/source docs/api

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)
	$(PY) -m mypy

format: venv
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

# The loops alone, without torch or Python; `make sanitize WITH_TORCH=1` adds the op library, and needs the environment.
sanitize: $(if $(WITH_TORCH),venv)
	PATH="$(abspath $(VENV))/bin:$$PATH" PYTHON="$(abspath $(PY))" WITH_TORCH=$(WITH_TORCH) bash tests/cpp/sanitize.sh

# The CUDA kernels' own source with threads for a GPU's: alone, under the thread sanitizer; then tests on them, of the kernels
# rather than of what Python does around them (SIMT_TESTS=tests for all). (g++ 12 or clang: g++ 11 has no _Float16.)
SIMT_TESTS ?= tests/test_clusters.py tests/test_tensor_tiles.py tests/test_loop.py tests/test_exact.py tests/test_packed.py tests/test_recompute.py tests/test_reset.py \
    tests/test_cells.py tests/test_gradcheck.py::TestFirstOrder::test_reverse_mode \
    tests/test_gradcheck.py::test_second_order_of_few_rows \
    -k "not (instruction_set or transforms or layouts_do_not or absent or nothing_is or beside_nn or compiled \
    or pieces_of_time or beside_the_mode)"
SIMT_VARIANTS ?= tests/test_variants.py tests/test_regularisation.py tests/test_clip.py tests/test_squares.py \
    tests/test_diagnostics.py -k "test_ops or test_gates or (hooks and small) or kernels_tell"
# On devices that want other plans: what a plan can change.
SIMT_PLANS ?= tests/test_loop.py -k "edges or tiles or gates"
ON_HOST := $(PY) -m pytest --kernels=cuda-on-host
simt: build
	bash tests/simt/run.sh
	$(ON_HOST) $(PYTEST_FLAGS) $(SIMT_TESTS)
	$(ON_HOST) $(PYTEST_FLAGS) $(SIMT_VARIANTS)
	FUSED_RNN_CUDA_LIMITS=sms=1,shared=14800,clusters=0 $(ON_HOST) $(PYTEST_FLAGS) $(SIMT_PLANS)
	FUSED_RNN_CUDA_LIMITS=cooperative=0,clusters=0 $(ON_HOST) $(PYTEST_FLAGS) $(SIMT_PLANS)
	FUSED_RNN_CUDA_LIMITS=loops=0 $(ON_HOST) $(PYTEST_FLAGS) $(SIMT_PLANS)
	FUSED_RNN_CUDA_LIMITS=loops=0 $(ON_HOST) $(PYTEST_FLAGS) $(SIMT_VARIANTS)

compat: build
	test -x .venv-compat/bin/python || $(PYTHON) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) "$(COMPAT)" pytest pytest-xdist hypothesis numpy expecttest \
	    onnx onnxruntime onnxscript
	.venv-compat/bin/python -m pytest $(PYTEST_FLAGS) $(COMPAT_TESTS)

cuda-check:
	$(PYTHON) tests/cpp/cuda_check.py

clean:
	rm -rf build dist out *.egg-info fused_rnn/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean
	rm -rf $(VENV) .venv-compat
