"""Which kernels run, and on how many threads.

A backend offers every kernel of `normcore.kernels.table`: ``cython`` (compiled at install time),
``numba`` (compiled at run time) and ``numpy`` (`normcore.reference_kernels`). ``auto`` is Cython
where it was built; else Numba, for the kernels that `warmup` has compiled; else NumPy. So no call
waits for a compilation unless ``numba`` was asked for by name.

Settings are process-wide (`set_backend`, `set_num_threads`) or local to a ``with`` block of the
calling thread or task (`use_backend`, `num_threads`).

OpenMP deadlocks in a forked child and Numba's OpenMP layer kills it, so a child runs serial.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import reference_kernels
from .kernels import table
from .plain import Calls

if TYPE_CHECKING:
    from .kernels import Channels, Cols, Rows, Running

NAMES = ("auto", "cython", "numba", "numpy")

# Below this many elements a call runs on one thread. Cython, float32, AVX-512, 1 / 2 threads, us:
# 16384 elements forward 3.8 / 4.0 (nchw), 5.6 / 6.7 (nc); 32768 forward 7.1 / 5.8, 10.1 / 9.7 and
# backward 8.6 / 6.9, 14.1 / 12.5; 65536 forward 14.4 / 9.7, 18.7 / 14.8.
SERIAL_BELOW = 32768


_GENERAL = Calls()


class Backend(NamedTuple):
    """The kernels of one backend."""

    name: str
    channels: dict[str, Channels]
    """nchw and nc."""
    rows: Rows
    cols: Cols
    running: Running
    calls: Calls


def _backend(name: str, families: Any, running: Any, calls: Any = _GENERAL) -> Backend:
    channels = {family: families[family] for family in ("nchw", "nc")}
    return Backend(name, channels, families["rows"], families["cols"], running, calls)


@cache
def load(name: str) -> Backend:
    """The backend `name`, which is not "auto"; ImportError where it cannot run."""
    if name == "cython":
        try:
            from .kernels import cython
        except ImportError as error:
            raise ImportError(f"backend 'cython' cannot be used here: {error}") from error
        modules = {**cython.families, "running": cython.running}
        calls = cython.Calls(modules, threads, SERIAL_BELOW)
        return _backend(name, cython.families, cython.running, calls)
    if name == "numba":
        try:
            from .numba_kernels import passes, plain_calls, update
        except ImportError as error:
            raise ImportError(f"backend 'numba' cannot be used here: {error}") from error
        calls = plain_calls(threads, SERIAL_BELOW)
        return _backend(name, {family: passes(family) for family in table.PASSES}, update, calls)
    families = {family: _quiet(passes) for family, passes in reference_kernels.FAMILIES.items()}
    return _backend(name, families, _quiet(reference_kernels.RUNNING))


def _quiet(family: Any) -> Any:
    # Like the compiled backends: NaN and infinity come out without a warning.
    names = [name for name in dir(family) if name in {kernel.name for kernel in table.KERNELS}]
    quiet = np.errstate(all="ignore")
    return SimpleNamespace(**{name: quiet(getattr(family, name)) for name in names})


def resolve(name: str) -> Backend:
    """The backend `name`; "auto" falls back to what can run without waiting."""
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}")
    if name != "auto":
        return load(name)
    try:
        return load("cython")
    except ImportError:
        # An instruction set that was asked for by name is not fallen back from.
        if "NORMCORE_ISA" in os.environ:
            raise
    if _process.warm:
        from .numba_kernels import compiled_passes

        slow = load("numpy")
        fallback = {**slow.channels, "rows": slow.rows, "cols": slow.cols}
        families = {of: compiled_passes(of, passes) for of, passes in fallback.items()}
        return _backend("numba", families, slow.running)
    return load("numpy")


class _Process:
    """The process-wide settings."""

    warm = False
    """Has `warmup` compiled the Numba kernels?"""
    forked = False
    choice: str
    backend: Backend
    threads: int


_process = _Process()
_local_backend: ContextVar[Backend | None] = ContextVar("normcore_backend", default=None)
_local_threads: ContextVar[int | None] = ContextVar("normcore_threads", default=None)


def current() -> Backend:
    """The backend of this call."""
    return _local_backend.get() or _process.backend


def threads(size: int) -> int:
    """The number of threads for an array of `size` elements."""
    if size < SERIAL_BELOW or _process.forked:
        return 1
    return _local_threads.get() or _process.threads


def set_backend(name: str) -> None:
    """Choose the backend of the whole process.

    Parameters
    ----------
    name : {"auto", "cython", "numba", "numpy"}
        "auto" takes the fastest that can run with no wait for a compilation. The environment
        variable ``NORMCORE_BACKEND`` makes the same choice at import.

    Raises
    ------
    ValueError
        For any other name.
    ImportError
        If the named backend cannot run here. The choice then stays what it was.

    Examples
    --------
    >>> import normcore as nc
    >>> nc.set_backend("numpy")
    >>> nc.get_backend()
    'numpy'
    >>> nc.set_backend("auto")
    """
    _process.backend = resolve(name)
    _process.choice = name


def get_backend() -> str:
    """Name of the backend that a call would use now.

    Examples
    --------
    >>> import normcore as nc
    >>> nc.get_backend() in ("cython", "numba", "numpy")
    True
    """
    return current().name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend for a ``with`` block of this thread or task.

    Parameters
    ----------
    name : {"auto", "cython", "numba", "numpy"}
        As in `set_backend`, with the same errors.

    Examples
    --------
    >>> import normcore as nc
    >>> with nc.use_backend("numpy"):
    ...     nc.get_backend()
    'numpy'
    """
    with using(resolve(name)):
        yield


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Use this backend for a ``with`` block of this thread or task."""
    token = _local_backend.set(backend)
    try:
        yield
    finally:
        _local_backend.reset(token)


def _thread_count(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"n: expected a number of threads (int), got {n!r}")
    if n < 1:
        raise ValueError(f"n: expected at least 1 thread, got {n}")
    return int(n)


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, in the whole process.

    The result of a call has the same bits for any number of threads. Arrays of fewer than
    `normcore.backend.SERIAL_BELOW` elements always take one, and so does a forked child.

    Parameters
    ----------
    n : int
        At least 1, else ValueError. The default is what OpenMP would take
        (``OMP_NUM_THREADS``, or the processors that this process may run on).

    Examples
    --------
    >>> import normcore as nc
    >>> before = nc.get_num_threads()
    >>> nc.set_num_threads(1)
    >>> nc.get_num_threads()
    1
    >>> nc.set_num_threads(before)
    """
    _process.threads = _thread_count(n)


def get_num_threads() -> int:
    """How many threads a call with a large array would use now.

    Examples
    --------
    >>> import normcore as nc
    >>> nc.get_num_threads() >= 1
    True
    """
    return threads(SERIAL_BELOW)


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Set how many threads a call may use, for a ``with`` block of this thread or task.

    Parameters
    ----------
    n : int
        As in `set_num_threads`, with the same errors.

    Examples
    --------
    >>> import normcore as nc
    >>> with nc.num_threads(1):
    ...     nc.get_num_threads()
    1
    """
    token = _local_threads.set(_thread_count(n))
    try:
        yield
    finally:
        _local_threads.reset(token)


def warmup(dtypes: Sequence[Any] = (np.float32, np.float64)) -> None:
    """Compile the Numba kernels now, so that no later call has to wait for them.

    Where Cython was not built, ``auto`` uses the compiled Numba kernels from then on.

    Parameters
    ----------
    dtypes : sequence of dtype
        The dtypes of x that will be used: float64, float32, float16 or bfloat16 (ml_dtypes).

    Raises
    ------
    TypeError
        For any other dtype.
    ImportError
        If Numba cannot be imported.

    Examples
    --------
    >>> import normcore as nc
    >>> nc.warmup(dtypes=())
    """
    wanted = [np.dtype(dtype) for dtype in dtypes]
    for dtype in wanted:
        if dtype.name not in ("float64", "float32", "float16", "bfloat16"):
            raise TypeError(f"dtypes: expected float64, float32, float16 or bfloat16, got {dtype}")
    if not wanted:
        return
    load("numba")
    from .numba_kernels import warm

    for dtype in wanted:
        warm(dtype)
    _process.warm = True
    if _process.choice == "auto":
        set_backend("auto")


def config() -> str:
    """The text that `show_config` prints."""
    from importlib.metadata import PackageNotFoundError, version

    from . import __version__

    try:
        load("cython")
        from .kernels import cython

        built = f"{cython.isa} (of {', '.join(cython.available())})"
    except ImportError as error:
        built = f"not available: {error}"
    try:
        compiler = version("numba")
    except PackageNotFoundError:
        compiler = "not installed"
    if "numba" in sys.modules:
        try:
            layer = sys.modules["numba"].threading_layer()
        except ValueError:
            layer = "not started"
    else:
        layer = "not imported"
    return "\n".join(
        (
            f"normcore         {__version__}",
            f"Python           {platform.python_version()} on {platform.machine()}",
            f"NumPy            {np.__version__}",
            f"backend          {get_backend()} (chosen: {_process.choice})",
            f"instruction set  {built}",
            f"Numba            {compiler}",
            f"threading layer  {layer}",
            f"threads          {get_num_threads()} (1 below {SERIAL_BELOW} elements)",
        )
    )


def show_config() -> None:
    """Print versions, backend, instruction set and threads: what a bug report needs.

    Examples
    --------
    >>> import normcore as nc
    >>> nc.show_config()  # doctest: +ELLIPSIS
    normcore         ...
    """
    print(config())


def _default_threads() -> int:
    try:
        load("cython")
        from .kernels import cython

        return cython.running.max_threads()
    except ImportError:
        for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            if os.environ.get(variable, "").isdecimal():
                return max(1, int(os.environ[variable]))
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1


def _from_environment() -> str:
    name = os.environ.get("NORMCORE_BACKEND", "auto")
    if name not in NAMES:
        raise ValueError(
            f"environment variable NORMCORE_BACKEND: expected one of {', '.join(NAMES)}, "
            f"got {name!r}"
        )
    return name


def _in_child() -> None:
    _process.forked = True


set_backend(_from_environment())
_process.threads = _default_threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
