"""Builds `libfused_rnn.so`, the ops, free of Python and on torch's stable ABI (one binary serves torch 2.10 and
later); `_C_cuda.so`, their CUDA kernels, of the same kind; and `_C`, the pybind11 module for what is not an op.

`_C_cuda.so` is built where torch is a build with CUDA and there is an nvcc; no GPU is needed. Environment variables:
  FUSED_RNN_CUDA=0       leave it out;  1: an error if it cannot be built, instead of doing without
  TORCH_CUDA_ARCH_LIST   architectures, as torch has it ("8.0;9.0a"); default: see `architectures`
  CUDA_HOME              the toolkit; default: that of the nvcc in PATH
  MAX_JOBS               compilers at a time; default: processors + 2
"""

import logging
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

ROOT = Path(__file__).parent
STABLE_ABI = 0x020A000000000000  # the oldest torch whose stable ABI we use: 2.10


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def commit() -> str:
    try:
        out = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return out.stdout.strip() or "unknown"


FLAGS = [
    "-std=c++20",
    "-O3",
    "-g1",
    # Products and sums become fused multiply-adds where the target region has them, the same way in
    # every tile variant: an element's bits depend on that.
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vector types never leave the target region that they are of
    f"-DTORCH_TARGET_VERSION={STABLE_ABI:#x}",
    *(f"-isystem{path}" for path in include_paths()),  # as a system's: their warnings are not ours
]
SANITIZE = os.environ.get("FUSED_RNN_SANITIZE", "")  # e.g. address,undefined
if SANITIZE:
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]
LINK = [f"-fsanitize={SANITIZE}"] if SANITIZE else []

# Read by tests/cpp/cuda_check.py too, so nothing but text here. No fast math: results follow nn.* and the CPU's.
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-lineinfo",
    "--expt-relaxed-constexpr",
    "-Xfatbin=-compress-all",  # a sixth of the size: lines' numbers are most of it
    # torch turns these operators off on every nvcc command line.
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_HALF2_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-Xcompiler=-fvisibility=hidden,-fvisibility-inlines-hidden,-ffp-contract=fast,-Wall,-Wextra,-Wno-psabi",
]


def cuda_toolkit() -> Path | None:
    """The folder of bin/nvcc. torch looks beside the nvcc in PATH, which may be a wrapper far from its toolkit; so that
    one is asked where it has its own."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named) if Path(named, "bin/nvcc").is_file() else None
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not nvcc:
        return None
    plan = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    home = Path(top[1].strip() if top else Path(nvcc).parent.parent).resolve()
    return home if (home / "bin/nvcc").is_file() else None


def no_cuda(toolkit: Path | None) -> str:
    """Why the CUDA kernels are not built; empty when they are."""
    if os.environ.get("FUSED_RNN_CUDA") == "0":
        return "FUSED_RNN_CUDA=0"
    if not sources("csrc/cuda/*.cu"):
        return "there are no sources csrc/cuda/*.cu"
    if not torch.version.cuda:
        return f"torch {torch.__version__} is a build without CUDA"
    if not toolkit:
        return "no nvcc was found: put it into PATH, or set CUDA_HOME to the folder that has bin/nvcc"
    if not architectures():
        return "TORCH_CUDA_ARCH_LIST names no architecture from 8.0 on"
    return ""


def architectures() -> str:
    """As TORCH_CUDA_ARCH_LIST has them, from 8.0 on: bf16 on tensor cores and asynchronous copies began there."""
    asked = re.split(r"[; ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; "))
    if asked == [""]:
        # 8.0 also runs on 8.6 to 8.9. What is newer than 9.0 gets the PTX compiled by the driver, once: no source here
        # is written for it, and machine code for 10.0 and 12.0 would double the time of the build.
        return "8.0+PTX;9.0a"
    return ";".join(name for name in asked if not re.match(r"[1-7]\.", name))


def cuda_runtime(toolkit: Path) -> str:
    """The shared libcudart: the toolkit's, or that of the package torch's wheel depends on. Its soname is all that
    stays in our library, and a library of that name has been loaded with torch."""
    major = torch.version.cuda.split(".")[0]
    packages = Path(torch.__file__).parent.parent / "nvidia"
    folders = toolkit / "lib64", toolkit / "lib", packages / f"cu{major}/lib", packages / "cuda_runtime/lib"
    files = [folder / name for folder in folders for name in ("libcudart.so", f"libcudart.so.{major}")]
    return next((str(file) for file in files if file.exists()), "-lcudart")


class Build(BuildExtension):
    """Ops first, under a plain library name, so that `_C` can link them and C++ programs can load them."""

    def run(self) -> None:
        if WITHOUT_CUDA:
            self.announce(f"fused_rnn: without CUDA kernels: {WITHOUT_CUDA}", level=logging.INFO)
        if os.environ.get("FUSED_RNN_CUDA") == "0":  # nor with those of an earlier build
            Path(self.get_ext_fullpath("fused_rnn._C_cuda")).unlink(missing_ok=True)
        super().run()

    def get_ext_filename(self, name: str) -> str:
        if name.endswith(("libfused_rnn", "_C_cuda")):
            return os.path.join(*name.split(".")) + ".so"
        return super().get_ext_filename(name)

    def build_extension(self, ext: Extension) -> None:
        if ext.name.endswith("_C_cuda"):
            # Objects of its own: sources that it shares with the others are compiled with other flags.
            temp, self.build_temp = self.build_temp, os.path.join(self.build_temp, "cuda")
            super().build_extension(ext)
            self.build_temp = temp
            return
        if ext.name.endswith("_C"):
            built = Path(self.get_ext_fullpath("fused_rnn.libfused_rnn")).resolve()
            ext.extra_objects.append(str(built))
            ext.depends.append(str(built))
        super().build_extension(ext)


def cuda(toolkit: Path) -> Extension:
    # As torch reads them, and where it has no GPU to ask.
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
    cpp_extension.CUDA_HOME = str(toolkit)
    includes = [f"-isystem{path}" for path in include_paths("cuda") if path not in include_paths()]
    return Extension(
        "fused_rnn._C_cuda",
        sources=sources("csrc/cuda/*.cu", "csrc/cuda/*.cpp", "csrc/torch/cuda_*.cpp", "csrc/torch/layer.cpp"),
        library_dirs=library_paths(),
        # Not CUDAExtension: it links libraries that torch's wheel does not bring.
        libraries=["torch", "torch_cpu", "torch_cuda"],
        extra_compile_args={"cxx": [*FLAGS, *includes], "nvcc": NVCC_FLAGS},
        # Nothing may be left undefined: torch.ops.load_library would find out at the user's.
        extra_link_args=[*LINK, cuda_runtime(toolkit), "-Wl,-soname,_C_cuda.so", *([] if LINK else ["-Wl,-z,defs"])],
        depends=sources("csrc/**/*.h", "csrc/**/*.cuh"),
        language="c++",
    )


ops = Extension(
    "fused_rnn.libfused_rnn",
    sources=[s for s in sources("csrc/torch/*.cpp", "csrc/cpu/*.cpp") if not re.search(r"/(module\.|cuda_)", s)],
    library_dirs=library_paths(),
    libraries=["torch", "torch_cpu"],
    extra_compile_args=FLAGS,
    # `_C` must look it up by name, beside itself.
    extra_link_args=[*LINK, "-Wl,-soname,libfused_rnn.so" if platform.system() == "Linux" else ""],
    depends=sources("csrc/**/*.h"),
    language="c++",
)
python = Extension(
    "fused_rnn._C",
    sources=["csrc/torch/module.cpp", *sources("csrc/cuda/*plan.cpp")],
    include_dirs=[pybind11.get_include()],
    extra_compile_args=[
        *FLAGS,
        f'-DFUSED_RNN_TORCH_VERSION="{torch.__version__}"',
        f'-DFUSED_RNN_COMMIT="{commit()}"',
        "-DFUSED_RNN_COMPILER=__VERSION__",
    ],
    extra_link_args=[*LINK, "-Wl,-rpath,$ORIGIN" if platform.system() == "Linux" else "-Wl,-rpath,@loader_path"],
    depends=sources("csrc/**/*.h"),
    language="c++",
)

extensions = [ops, python]
TOOLKIT = cuda_toolkit() if torch.version.cuda else None
WITHOUT_CUDA = no_cuda(TOOLKIT)
if TOOLKIT and not WITHOUT_CUDA:
    extensions.append(cuda(TOOLKIT))
elif os.environ.get("FUSED_RNN_CUDA") == "1":
    raise SystemExit(f"fused_rnn: FUSED_RNN_CUDA=1, but its CUDA kernels cannot be built: {WITHOUT_CUDA}")

setup(license="BSD-3-Clause", ext_modules=extensions, cmdclass={"build_ext": Build})
