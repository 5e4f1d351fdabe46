"""Builds two libraries: `libfused_rnn.so`, the ops, free of Python and on torch's stable ABI (one binary
serves torch 2.10 and later), and `_C`, the pybind11 module for what is not an op."""

import os
import platform
import subprocess
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
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
    "-Wno-psabi",  # vector types never cross a function that is not inlined
    f"-DTORCH_TARGET_VERSION={STABLE_ABI:#x}",
    *(f"-isystem{path}" for path in include_paths()),  # as a system's: their warnings are not ours
]
SANITIZE = os.environ.get("FUSED_RNN_SANITIZE", "")  # e.g. address,undefined
if SANITIZE:
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]
LINK = [f"-fsanitize={SANITIZE}"] if SANITIZE else []


class Build(BuildExtension):
    """Ops first, under a plain library name, so that `_C` can link them and C++ programs can load them."""

    def get_ext_filename(self, name: str) -> str:
        if name.endswith("libfused_rnn"):
            return os.path.join(*name.split(".")) + ".so"
        return super().get_ext_filename(name)

    def build_extension(self, ext: Extension) -> None:
        if ext.name.endswith("_C"):
            built = Path(self.get_ext_fullpath("fused_rnn.libfused_rnn")).resolve()
            ext.extra_objects.append(str(built))
            ext.depends.append(str(built))
        super().build_extension(ext)


ops = Extension(
    "fused_rnn.libfused_rnn",
    sources=[s for s in sources("csrc/torch/*.cpp", "csrc/cpu/*.cpp") if not s.endswith("module.cpp")],
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
    sources=["csrc/torch/module.cpp"],
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

setup(ext_modules=[ops, python], cmdclass={"build_ext": Build})
