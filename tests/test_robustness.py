"""Processes, threads and signals: fork, concurrent calls, Ctrl-C, a read-only install."""

import ctypes
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import runnable

import normcore as nc

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
LARGE = np.random.default_rng(0).standard_normal((8, 16, 32, 32)).astype(np.float32)

FORKED = """
import os, signal, sys
import numpy as np
import normcore as nc

nc.set_backend(sys.argv[1])
nc.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((8, 16, 32, 32)).astype(np.float32)

def step():
    bn = nc.BatchNorm2d(16)
    y = bn(x)
    return b"".join(a.tobytes() for a in (y, *bn.backward(x), bn.eval()(x), bn.running_var))

expected = step()   # the threads of this process run now
child = os.fork()
if child == 0:
    signal.alarm(60)    # a deadlock is a failure, not a test that never ends
    with nc.num_threads(2):
        serial = nc.get_num_threads() == 1
    os._exit(0 if serial and step() == expected else 3)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), step() == expected, nc.get_num_threads())
"""


def fresh(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **options,
    )


@FORK
@pytest.mark.parametrize("name", runnable())
def test_a_forked_child_runs_serial_and_gives_the_same_bits(name):
    found = fresh(FORKED, name)
    assert found.stdout == "0 True 2\n", found.stderr


WORKQUEUE = """
import threading
import numpy as np
import normcore as nc

nc.set_backend("numba")
nc.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((8, 16, 32, 32)).astype(np.float32)
expected = nc.functional.batch_norm(x, None, None, training=True)
equal = []

def work():
    for _ in range(20):
        y = nc.functional.batch_norm(x, None, None, training=True)
        equal.append(np.array_equal(y, expected))

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import numba
print(len(equal), all(equal), numba.threading_layer())
"""


@pytest.mark.skipif("numba" not in runnable(), reason="Numba cannot run here")
def test_concurrent_calls_on_the_workqueue_layer():
    found = fresh(WORKQUEUE, env={**os.environ, "NUMBA_THREADING_LAYER": "workqueue"})
    assert found.stdout == "80 True workqueue\n", found.stderr


def together(work, count=4):
    """Run `work` in several threads at once; raise what any of them raised."""
    errors = []
    start = threading.Barrier(count)

    def run():
        try:
            start.wait()
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_concurrent_evaluation_of_one_layer(backend):
    bn = nc.BatchNorm2d(16)
    bn(LARGE)
    bn.eval()
    expected = bn(LARGE)

    def work():
        with nc.use_backend(backend):
            for _ in range(10):
                np.testing.assert_array_equal(bn(LARGE), expected)

    together(work)


def test_concurrent_training_steps_of_one_layer_are_all_counted(backend):
    bn, alone = nc.BatchNorm2d(16), nc.BatchNorm2d(16)
    for _ in range(40):
        alone(LARGE)

    def work():
        with nc.use_backend(backend):
            for _ in range(10):
                bn(LARGE)

    together(work)
    assert bn.num_batches_tracked == 40
    np.testing.assert_array_equal(bn.running_mean, alone.running_mean)
    np.testing.assert_array_equal(bn.running_var, alone.running_var)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_ctrl_c_leaves_running_statistics_all_old_or_all_new(backend):
    x = np.random.default_rng(0).standard_normal((4, 2000)).astype(np.float32)

    def state(bn):
        return bn.running_mean.tobytes(), bn.running_var.tobytes()

    steps = nc.BatchNorm1d(2000)
    states = [state(steps)]
    bn = nc.BatchNorm1d(2000)
    nc.BatchNorm1d(2000)(x)  # a compilation is no part of this
    rng = np.random.default_rng(0)
    interrupted = 0

    def interrupt(_signal, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    # hypothesis has a callback in the garbage collector; an interrupt in it would be reported as
    # an error of this test.
    gc.disable()
    try:
        while interrupted < 60:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-5, 1e-3))
                for _ in range(10_000):  # an interrupt that lands in a destructor is lost
                    bn(x)
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            while len(states) <= bn.num_batches_tracked:
                steps(x)
                states.append(state(steps))
            assert state(bn) == states[int(bn.num_batches_tracked)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert bn.num_batches_tracked > 0


READ_ONLY = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import normcore as nc
assert nc.__file__.startswith(sys.argv[1]), nc.__file__
nc.set_backend(sys.argv[2])
x = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
print(nc.get_backend(), abs(nc.BatchNorm1d(16)(x).mean()) < 1e-6)
"""


def obey_permissions():
    """Take from root the right to write where the mode says nobody may (before an exec)."""
    if os.geteuid() == 0:
        drop_from_bounding_set, dac_override = 24, 1
        ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="root is made to obey permissions by prctl")
# JAX, once another test has imported it, warns of any fork; this one executes at once.
@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
@pytest.mark.parametrize("name", runnable())
def test_a_read_only_install_without_home(name, tmp_path):
    # As installed: kernels/ is normcore/kernels there.
    package = Path(nc.__file__).parent
    kernels = Path(sys.modules["normcore.kernels.table"].__file__).parent
    site = tmp_path / "site"
    sources = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, site / "normcore", ignore=sources)
    shutil.copytree(kernels, site / "normcore" / "kernels", ignore=sources)
    folders = [folder for folder in (site, *site.rglob("*")) if folder.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    bare = {"PATH": os.environ["PATH"], "HOME": str(site)}
    try:
        found = fresh(READ_ONLY, str(site), name, env=bare, cwd="/", preexec_fn=obey_permissions)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert found.stdout == f"{name} True\n", found.stderr
    assert not [*site.rglob("__pycache__"), *site.glob(".*")]


def test_the_lock_of_a_layer_is_free_after_an_error(backend):
    bn = nc.BatchNorm2d(16)
    with pytest.raises(ValueError, match="out: expected"):
        bn(LARGE, out=np.empty((1, 1), np.float32))
    done = threading.Thread(target=bn, args=(LARGE,))
    done.start()
    done.join(timeout=60)
    assert not done.is_alive()


@pytest.mark.skipif("cython" not in runnable(), reason="Cython kernels were not built")
def test_kernels_release_the_gil():
    x = np.random.default_rng(0).standard_normal((32, 64, 56, 56)).astype(np.float32)
    y = np.empty_like(x)
    ticks = []
    done = threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)

    clock = threading.Thread(target=tick, daemon=True)
    most = 0
    with nc.use_backend("cython"), nc.num_threads(1):
        clock.start()
        # A call of some milliseconds; on a busy machine not every one of them is interrupted.
        for _ in range(200):
            start = time.perf_counter()
            nc.functional.batch_norm(x, None, None, training=True, out=y)
            end = time.perf_counter()
            most = max(most, sum(start < moment < end for moment in ticks))
            ticks.clear()
            if most > 3:
                break
    done.set()
    clock.join()
    # A call that kept the lock would let in one tick, as it returns.
    assert most > 3
