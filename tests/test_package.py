"""Wheel, source distribution, editable install, no compiler, and what an import costs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from kernel_cases import backends
from normcore.kernels.table import PASSES
from readme import blocks

ROOT = Path(__file__).resolve().parent.parent
ISAS = [str(b).removeprefix("cython-") for b in backends() if str(b).startswith("cython")]
HAS_COMPILER = bool(ISAS) or any(shutil.which(name) for name in ("cc", "gcc", "clang"))
X86_64 = platform.machine().lower() in ("x86_64", "amd64") and os.name == "posix"

COMPILED = {f"{family}_cy" for family in (*PASSES, "running", "gufuncs")}
if X86_64:
    COMPILED |= {f"{family}_cy_{isa}" for family in PASSES for isa in ("avx2", "avx512")}

# A training forward through a layer on each backend, against the formula, in float64.
BATCH_NORM = """
import sys
import numpy as np
import normcore as nc

x = np.random.default_rng(0).standard_normal((4, 3, 5, 7)) + 100
axes = (0, 2, 3)
expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
for backend in sys.argv[1:]:
    with nc.use_backend(backend):
        y = nc.BatchNorm2d(3, dtype=np.float64)(x)
    assert np.abs(y - expected).max() < 1e-12, backend
    print(backend, end=" ")
"""


def _environment(**given: str) -> dict[str, str]:
    ours = ("PYTHON", "NORMCORE_", "PIP_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    # What pip is told about indices matters to nobody: every call here says --no-index.
    return kept | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"} | given


def _run(
    *command: str | Path, cwd: Path, succeeds: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=_environment(**environment),
        capture_output=True,
        text=True,
        timeout=600,
    )
    if succeeds:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done


def _python(python: str | Path, code: str, *words: str, cwd: Path, **environment: str) -> str:
    done = _run(python, "-W", "error", "-c", code, *words, cwd=cwd, **environment)
    return done.stdout.strip()


def _copy_of_checkout(folder: Path) -> Path:
    """The files that git tracks or would track, and nothing that a build has left behind."""
    listed = _run(
        "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _fresh(folder: Path) -> Path:
    """The Python of a new virtual environment that sees this one's packages, bar normcore.

    A folder on sys.path through a .pth file is searched, but its own .pth files are not read:
    the editable install of this checkout stays out.
    """
    venv.create(folder, with_pip=False, symlinks=os.name == "posix")
    python = folder / ("bin/python" if os.name == "posix" else "Scripts/python.exe")
    found = _python(python, "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (Path(found) / "packages.pth").write_text("\n".join(packages))
    return python


def _install(python: Path, *words: str | Path, cwd: Path, **environment: str) -> None:
    _run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps"),
        *("--no-build-isolation", "--ignore-installed", "-q", *words),
        cwd=cwd,
        **environment,
    )


def _wheel(checkout: Path, folder: Path, **environment: str) -> Path:
    _run(
        *(sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-cache-dir"),
        *("--no-build-isolation", "-w", folder, checkout),
        cwd=folder.parent,
        **environment,
    )
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the tests of the build need a git checkout, to know which files belong to it")
    return _copy_of_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def without_compiler(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Python of an environment whose normcore was installed, editable, where no compiler works."""
    python = _fresh(tmp_path_factory.mktemp("environment"))
    copy = tmp_path_factory.mktemp("editable") / "normcore-checkout"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "*.so"))
    _install(python, "-e", copy, cwd=copy.parent, CC="false", CXX="false")
    return python, copy


def _modules(names: list[str]) -> set[str]:
    """normcore.kernels' extension modules among the files of an archive or folder."""
    suffixes = tuple(EXTENSION_SUFFIXES)
    return {Path(name).name.partition(".")[0] for name in names if name.endswith(suffixes)}


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    [metadata] = (name for name in top if name.endswith(".dist-info"))
    assert top == {"normcore", metadata}
    assert {"normcore/__init__.py", "normcore/py.typed", "normcore/kernels/__init__.py",
            "normcore/kernels/table.py", "normcore/capi.pxd"} <= set(names)  # fmt: skip
    assert any(name.endswith(".pyi") for name in names)
    left_behind = [name for name in names if name.endswith((".c", ".o", ".pyc", ".html"))]
    assert left_behind == []
    [licence] = (name for name in names if name.endswith("LICENSE"))
    assert zipfile.ZipFile(wheel).read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler on this machine")
def test_wheel_holds_every_compiled_module(wheel: Path) -> None:
    assert _modules(zipfile.ZipFile(wheel).namelist()) == COMPILED


def test_wheel_runs_from_any_other_folder(wheel: Path, tmp_path: Path) -> None:
    python = _fresh(tmp_path / "environment")
    _install(python, wheel, cwd=tmp_path)
    where = _python(python, "import normcore; print(normcore.__file__)", cwd=tmp_path)
    assert (tmp_path / "environment").resolve() in Path(where).resolve().parents
    wanted = ["numpy", "numba", *(["cython"] if HAS_COMPILER else [])]
    assert _python(python, BATCH_NORM, *wanted, cwd=tmp_path).split() == wanted
    refused = _run(python, "-c", "import kernels", cwd=tmp_path, succeeds=False)
    assert "ModuleNotFoundError" in refused.stderr


# Beside the README's example: batch norm, forward and backward, in threads of the caller.
CALLER = """
from cython.parallel cimport prange
from normcore.capi cimport NORMCORE_FLOAT64, nchw_backward, nchw_forward

def batch_norms(double[:, :, :, ::1] x, double[:, :, :, ::1] y, double[:, :, :, ::1] dx,
                double[:, :, ::1] saved, double[:, :, ::1] grads):
    cdef Py_ssize_t i, n = x.shape[1], c = x.shape[2], s = x.shape[3]
    cdef int failed = 0
    for i in prange(x.shape[0], nogil=True):
        failed += nchw_forward(
            NORMCORE_FLOAT64, NORMCORE_FLOAT64, &y[i, 0, 0, 0], &saved[i, 0, 0],
            &saved[i, 1, 0], &saved[i, 2, 0], &x[i, 0, 0, 0], NULL, NULL, NULL, 1e-5, 0, c, c,
            n, c, s, 1)
        failed += nchw_backward(
            NORMCORE_FLOAT64, NORMCORE_FLOAT64, &dx[i, 0, 0, 0], &grads[i, 0, 0],
            &grads[i, 1, 0], &y[i, 0, 0, 0], &x[i, 0, 0, 0], &saved[i, 0, 0], &saved[i, 2, 0],
            NULL, True, c, c, n, c, s, 1)
    return failed
"""

CALL = """
import numpy as np
import pipeline
from normcore import reference

random = np.random.default_rng(0)
x = (random.standard_normal((70, 129)) + 1e4).astype(np.float32)
weight = random.uniform(0.5, 1.5, 129).astype(np.float32)
mean, rstd = np.empty((2, 70))
truth, moments = reference.batch_norm_forward(x, weight, None, 1e-5, (1,))
pipeline.normalize(x, weight, mean, rstd)
assert np.abs(x - truth).max() <= 1e-6 * np.abs(truth).max()
assert np.allclose(mean, moments.mean.ravel(), rtol=1e-14)

x = random.standard_normal((5, 4, 3, 50))
y, dx, saved, grads = np.empty_like(x), np.empty_like(x), np.empty((5, 3, 3)), np.empty((5, 2, 3))
assert pipeline.batch_norms(x, y, dx, saved, grads) == 0
for i in range(5):
    truth, _ = reference.batch_norm_forward(x[i], None, None, 1e-5, (0, 2))
    gradients = reference.batch_norm_backward(y[i], x[i], None, 1e-5, (0, 2))
    assert np.abs(y[i] - truth).max() < 1e-14
    assert np.abs(dx[i] - gradients[0]).max() < 1e-13
    assert np.abs(grads[i] - np.reshape(gradients[1:], (2, 3))).max() < 1e-11
try:
    pipeline.normalize(np.ones((1, 129), np.float32), weight, mean[:0], rstd)
except IndexError:
    print("called")
"""


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler on this machine")
def test_a_cython_module_calls_the_kernels_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    python = _fresh(tmp_path / "environment")
    _install(python, wheel, cwd=tmp_path)
    [example] = blocks("In a Cython or Numba pipeline", "cython")
    (tmp_path / "pipeline.pyx").write_text("# cython: boundscheck=True\n" + example + CALLER)
    _run(python, "-m", "Cython.Build.Cythonize", "-i", "-3", "pipeline.pyx", cwd=tmp_path)
    assert _python(python, CALL, cwd=tmp_path) == "called"


def test_source_distribution_builds_what_the_checkout_builds(
    checkout: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    build = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
    _run(sys.executable, "-c", build, tmp_path, cwd=copy)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
        file.extractall(tmp_path / "unpacked", filter="data")
    sources = {f"{p.parent.name}/{p.name}" for d in ("normcore", "kernels")
               for p in (copy / d).iterdir() if p.is_file()}  # fmt: skip
    assert sources - names == set()
    [unpacked] = (tmp_path / "unpacked").iterdir()
    wheel = _wheel(unpacked, tmp_path / "wheel", CC="false", CXX="false")
    python = _fresh(tmp_path / "environment")
    _install(python, wheel, cwd=tmp_path)
    assert _python(python, BATCH_NORM, "numpy", cwd=tmp_path) == "numpy"


def test_install_without_a_compiler_serves_numba_and_numpy(
    without_compiler: tuple[Path, Path], tmp_path: Path
) -> None:
    python, copy = without_compiler
    assert _modules([str(path) for path in copy.rglob("*")]) == set()
    for folder in (tmp_path, copy):
        found = _python(python, BATCH_NORM, "numpy", "numba", "auto", cwd=folder)
        assert found.split() == ["numpy", "numba", "auto"]
    refused = _run(python, "-c", BATCH_NORM, "cython", cwd=tmp_path, succeeds=False)
    assert refused.returncode != 0
    assert "cython" in refused.stderr.splitlines()[-1].lower()


def test_kernels_is_not_a_package_of_its_own(
    without_compiler: tuple[Path, Path], tmp_path: Path
) -> None:
    python, copy = without_compiler
    in_checkout = _run(python, "-c", "import kernels", cwd=copy, succeeds=False)
    assert "ImportError" in in_checkout.stderr
    assert "normcore.kernels" in in_checkout.stderr
    elsewhere = _run(python, "-c", "import kernels", cwd=tmp_path, succeeds=False)
    assert "ModuleNotFoundError" in elsewhere.stderr
    found = _python(python, "from normcore.kernels import table; print(table.__file__)", cwd=copy)
    assert Path(found).resolve() == (copy / "kernels" / "table.py").resolve()


def test_this_installation_has_the_modules_that_a_compiler_gives() -> None:
    # Else every Cython test would be skipped in silence.
    assert bool(ISAS) == HAS_COMPILER
    if HAS_COMPILER:
        assert "baseline" in ISAS


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_set_can_be_chosen(isa: str, tmp_path: Path) -> None:
    code = (
        "from normcore.kernels.cython import families, isa\nprint(isa, families['nchw'].__name__)"
    )
    suffix = "" if isa == "baseline" else f"_{isa}"
    chosen = _python(sys.executable, code, cwd=tmp_path, NORMCORE_ISA=isa)
    assert chosen == f"{isa} normcore.kernels.nchw_cy{suffix}"
    assert _python(sys.executable, BATCH_NORM, "cython", cwd=tmp_path, NORMCORE_ISA=isa) == "cython"


@pytest.mark.skipif(not ISAS, reason="built without a C compiler")
def test_best_instruction_set_is_the_default_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    code = "from normcore.kernels import cython; print(cython.isa)"
    assert _python(sys.executable, code, cwd=tmp_path) == ISAS[0]
    refused = _run(sys.executable, "-c", code, cwd=tmp_path, succeeds=False, NORMCORE_ISA="sse9")
    assert refused.returncode != 0
    assert "ImportError" in refused.stderr
    assert "sse9" in refused.stderr
    assert ISAS[0] in refused.stderr


def test_import_loads_no_compiler_and_no_framework(tmp_path: Path) -> None:
    code = "import sys, normcore; print(*sys.modules)"
    loaded = set(_python(sys.executable, code, cwd=tmp_path).split())
    heavy = {"numba", "llvmlite", "torch", "onnx", "scipy", "sklearn", "matplotlib", "Cython"}
    assert loaded & heavy == set()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads through /proc")
def test_import_starts_no_threads(tmp_path: Path) -> None:
    code = """
import os
import numpy  # its BLAS starts threads of its own
before = len(os.listdir("/proc/self/task"))
import normcore
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert _python(sys.executable, code, cwd=tmp_path) == "0"
