"""Choice of backend and threads, warm-up, what import costs, the typed contract."""

import ast
import contextvars
import importlib.metadata
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import runnable
from normcore.kernels.table import KERNELS, SIZES

import normcore as nc
from normcore import backend as choice


def run(code, **environment):
    """Standard output of a fresh interpreter."""
    ours = ("NORMCORE_", "OMP_NUM_THREADS", "NUMBA_")
    keep = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**keep, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture
def settings():
    """Put the process-wide settings back."""
    before = choice._process.choice, choice._process.threads
    yield
    nc.set_backend(before[0])
    nc.set_num_threads(before[1])


def test_the_chosen_backend_is_used(backend):
    assert nc.get_backend() == backend
    assert choice.current() is choice.load(backend)


def test_process_wide_and_local_choices(settings):
    nc.set_backend("numpy")
    assert nc.get_backend() == "numpy"
    best = runnable()[-1]
    with nc.use_backend(best):
        assert nc.get_backend() == best
        with nc.use_backend("numpy"):
            assert nc.get_backend() == "numpy"
        assert nc.get_backend() == best
        seen = []
        other = threading.Thread(target=lambda: seen.append(nc.get_backend()))
        other.start()
        other.join()
        assert seen == ["numpy"]
    assert nc.get_backend() == "numpy"


def test_a_local_choice_ends_with_an_error():
    before = nc.get_backend(), nc.get_num_threads()
    for local in (nc.use_backend("numpy"), nc.num_threads(7)):
        with pytest.raises(ZeroDivisionError), local:
            1 / 0
    assert (nc.get_backend(), nc.get_num_threads()) == before


def test_a_context_carries_its_choice():
    with nc.use_backend("numpy"), nc.num_threads(5):
        inside = contextvars.copy_context()
    assert inside.run(nc.get_backend) == "numpy"
    assert inside.run(nc.get_num_threads) == 5


def test_auto_takes_cython_where_it_was_built(settings):
    nc.set_backend("auto")
    assert nc.get_backend() == ("cython" if "cython" in runnable() else "numpy")


@pytest.mark.parametrize("name", ["torch", "Numpy", "", None])
def test_an_unknown_backend(name):
    before = nc.get_backend()
    with pytest.raises(ValueError, match="backend: expected one of auto, cython, numba, numpy"):
        nc.set_backend(name)
    with pytest.raises(ValueError, match="backend: expected one of"), nc.use_backend(name):
        pass
    assert nc.get_backend() == before


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({names!r}):
            raise ImportError("hidden from this test: " + name)
sys.meta_path.insert(0, Hidden())
import normcore as nc
"""
NO_CYTHON = HIDE.format(names=("normcore.kernels.running_cy",))
NO_NUMBA = HIDE.format(names=("numba",))


def test_without_cython_auto_is_numpy_and_an_explicit_choice_raises():
    found = run(
        NO_CYTHON
        + "print(nc.get_backend(), nc.get_num_threads() >= 1)\n"
        + "nc.show_config()\n"
        + "nc.set_backend('cython')\n"
    )
    assert found.stdout.startswith("numpy True")
    assert "not available: backend 'cython' cannot be used here" in found.stdout
    assert "ImportError: backend 'cython' cannot be used here: hidden from" in found.stderr


def test_without_numba_an_explicit_choice_raises():
    found = run(NO_NUMBA + "nc.set_backend('numba')")
    assert "ImportError: backend 'numba' cannot be used here: hidden from" in found.stderr


def test_the_environment_variable():
    code = "import normcore as nc; print(nc.get_backend())"
    assert run(code, NORMCORE_BACKEND="numpy").stdout.strip() == "numpy"
    wrong = run(code, NORMCORE_BACKEND="fast")
    assert (
        "NORMCORE_BACKEND: expected one of auto, cython, numba, numpy, got 'fast'" in wrong.stderr
    )


@pytest.mark.skipif("cython" not in runnable(), reason="Cython kernels were not built")
def test_an_instruction_set_that_was_asked_for_is_not_fallen_back_from():
    found = run("import normcore", NORMCORE_ISA="sse9")
    assert "ImportError" in found.stderr
    assert "'sse9' (NORMCORE_ISA)" in found.stderr


def test_threads(settings):
    nc.set_num_threads(3)
    assert nc.get_num_threads() == 3
    with nc.num_threads(np.int64(2)):
        assert nc.get_num_threads() == 2
        assert choice.threads(choice.SERIAL_BELOW - 1) == 1
        assert choice.threads(choice.SERIAL_BELOW) == 2
    assert nc.get_num_threads() == 3


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_wrong_number_of_threads(n, error):
    before = nc.get_num_threads()
    with pytest.raises(error, match="n: expected"):
        nc.set_num_threads(n)
    with pytest.raises(error, match="n: expected"), nc.num_threads(n):
        pass
    assert nc.get_num_threads() == before


def test_the_default_number_of_threads_is_what_openmp_takes():
    code = "import normcore as nc; print(nc.get_num_threads())"
    assert run(code, OMP_NUM_THREADS="1").stdout.strip() == "1"
    assert run(NO_CYTHON + "print(nc.get_num_threads())", OMP_NUM_THREADS="1").stdout == "1\n"
    assert int(run(code).stdout) == len(os.sched_getaffinity(0))


def test_show_config(capsys):
    nc.show_config()
    text = capsys.readouterr().out
    for line in ("normcore ", "NumPy ", "backend ", "instruction set ", "Numba ", "threads "):
        assert f"\n{line}" in f"\n{text}"
    assert nc.__version__ in text
    assert importlib.metadata.version("numba") in text


def test_the_version_is_that_of_the_package():
    assert nc.__version__ == importlib.metadata.version("normcore")


def test_warmup_refuses_other_dtypes():
    with pytest.raises(TypeError, match="bfloat16, got int64"):
        nc.warmup(dtypes=(np.int64,))


@pytest.mark.skipif("numba" not in runnable(), reason="Numba cannot run here")
def test_after_warmup_auto_is_numba_and_compiles_nothing():
    found = run(
        NO_CYTHON
        + """
import numpy as np
nc.warmup(dtypes=(np.float32,))
print(nc.get_backend())
from normcore import numba_kernels
def compiled():
    kernels = numba_kernels._kernels.values()
    return sum(len(d.signatures) for k in kernels for d in (k.serial, k.parallel))
before = compiled()
for dtype in (np.float32, np.float64):
    for shape in ((40, 3), (4, 3, 5, 5), (16, 8, 32, 32)):
        bn = {2: nc.BatchNorm1d, 4: nc.BatchNorm2d}[len(shape)](shape[1])
        x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        x.flags.writeable = False
        assert abs(bn(x).mean()) < 1e-5
        bn.backward(x)
        bn.eval()(x)
print(compiled() - before)
"""
    )
    assert found.stdout.split() == ["numba", "0"], found.stderr


def test_the_typed_contract_is_the_table():
    stub = Path(nc.__file__).with_name("kernels.pyi")
    classes = {
        node.name: node for node in ast.parse(stub.read_text()).body if hasattr(node, "name")
    }
    methods = {
        family: {method.name: method for method in classes[name].body if hasattr(method, "args")}
        for family, name in {
            "nchw": "Channels",
            "nc": "Channels",
            "rows": "Rows",
            "cols": "Cols",
            "running": "Running",
        }.items()
    }
    assert {(family, name) for family in methods for name in methods[family]} == {
        (kernel.family, kernel.name) for kernel in KERNELS
    }
    for kernel in KERNELS:
        names = [argument.arg for argument in methods[kernel.family][kernel.name].args.posonlyargs]
        sizes = SIZES[kernel.family]
        named = [name for name in kernel.arguments if name not in sizes]
        generic = [name for name in names[1:] if name not in ("first", "second", "third")]
        assert generic == named
        assert len(names[1:]) - len(generic) == len(sizes)
