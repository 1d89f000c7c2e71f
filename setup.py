"""The native kernels of sdcore/kernels, built where there is a compiler that can, and the book.

Everything else about the package stands in pyproject.toml. A build that fails leaves a package
without kernels, which computes the same in plain torch.
"""

import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

FOLDER = "sdcore/kernels"
SOURCES = [f"{FOLDER}/{name}.cpp" for name in ("attention", "convolution", "processor")]
X86 = ["-mavx2", "-mfma"]
AVX512 = [*X86, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
VARIANTS = {
    "x86_64": {"avx2": X86, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]},
    "arm64": {"neon": []},
}


def kernels() -> list[Extension]:
    """One library for each kind of processor; the one to use is chosen when the package runs."""
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    if sys.platform == "win32":  # its compiler has no vectors
        return []
    return [
        Extension(
            f"sdcore.kernels.native_{name}",
            SOURCES,
            depends=[f"{FOLDER}/vectors.h"],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", *flags],
            optional=True,
        )
        for name, flags in VARIANTS.get(machine, {}).items()
    ]


class Build(build_py):
    """With the pages of docs/book, a megabyte, to which the page of `sdcore serve` links."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # they are read where they are
            return
        book = Path("docs/book")
        for pattern in ("*.md", "pictures/*.svg", "live/*.html"):
            for path in book.glob(pattern):
                copy = Path(self.build_lib, "sdcore/app/serve/book_pages", path.relative_to(book))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


class Wheel(bdist_wheel):
    """A wheel for one kind of system and every Python: the libraries know nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=kernels(), cmdclass={"bdist_wheel": Wheel, "build_py": Build})
