"""The build command: each Cython source once per instruction set, OpenMP where there is any.

Used at build time only. What it cannot build it leaves out with a warning, because the Numba and
NumPy backends serve without it.
"""

from __future__ import annotations

import copy
import os
import platform
import sys
import tempfile
from distutils.errors import CCompilerError

from setuptools.command.build_ext import build_ext as _build_ext
from setuptools.errors import BaseError

# Sources whose arithmetic is worth one build per instruction set.
VECTORIZED = ("nchw_cy", "nc_cy", "rows_cy", "cols_cy")

# -mprefer-vector-width: GCC and Clang otherwise keep AVX-512 code at 256 bits.
X86_64_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ],
}

# No -ffast-math: NaN and infinity must survive. -fno-math-errno lets sqrt be an instruction.
UNIX_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-unused-function"]

PROBE = """
#include <omp.h>
int main(void) { return omp_get_max_threads() < 1; }
"""


class build_ext(_build_ext):
    """setuptools' build_ext with instruction-set variants, OpenMP and NumPy's headers."""

    def finalize_options(self) -> None:
        super().finalize_options()
        variants = []
        for extension in self.extensions or []:
            extension.optional = True
            variants.append(extension)
            if extension.name.endswith(VECTORIZED) and self._on_x86_64():
                for isa, flags in X86_64_FLAGS.items():
                    variant = copy.copy(extension)
                    variant.name = variant._full_name = f"{extension.name}_{isa}"
                    variant.sources = list(extension.sources)
                    variant.extra_compile_args = list(flags)
                    variants.append(variant)
        self.extensions = self.distribution.ext_modules = variants

    def build_extensions(self) -> None:
        import numpy

        compile_args, link_args = [], []
        if self.compiler.compiler_type == "unix":
            compile_args += UNIX_FLAGS
        for compile_flags, link_flags in self._openmp_candidates():
            if self._compiles(PROBE, compile_flags, link_flags):
                compile_args += compile_flags
                link_args += link_flags
                break
        else:
            self.warn("no OpenMP: the Cython backend will run on one thread")
        for extension in self.extensions:
            extension.include_dirs.append(numpy.get_include())
            extension.define_macros.append(("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"))
            extension.define_macros.append(("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"))
            extension.extra_compile_args = compile_args + extension.extra_compile_args
            extension.extra_link_args = link_args + extension.extra_link_args
            self._to_c(extension)
        super().build_extensions()

    def _to_c(self, extension) -> None:
        # One folder per module: the variants share a source, and the C holds the module's name.
        from Cython.Build import cythonize

        folder = os.path.join(self.build_temp, extension.name.rpartition(".")[2])
        [translated] = cythonize(
            [extension], build_dir=folder, quiet=True, language_level=3, force=self.force
        )
        extension.sources = translated.sources

    def build_extension(self, extension) -> None:
        try:
            super().build_extension(extension)
        except (CCompilerError, BaseError, OSError) as error:
            self.warn(f"{extension.name} was not built: {error}")

    def _on_x86_64(self) -> bool:
        target = os.environ.get("ARCHFLAGS", "") or platform.machine()
        return (
            any(name in target.lower() for name in ("x86_64", "amd64"))
            and "arm64" not in target
            and sys.maxsize > 2**32
            and os.name == "posix"
        )

    def _openmp_candidates(self) -> list[tuple[list[str], list[str]]]:
        if self.compiler.compiler_type == "msvc":
            return [(["/openmp"], [])]
        return [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]

    def _compiles(self, program: str, compile_flags: list[str], link_flags: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "probe.c")
            with open(source, "w") as file:
                file.write(program)
            try:
                objects = self.compiler.compile(
                    [source], output_dir=folder, extra_preargs=compile_flags
                )
                self.compiler.link_executable(
                    objects, os.path.join(folder, "probe"), extra_postargs=link_flags
                )
            except (CCompilerError, BaseError, OSError):
                return False
        return True
