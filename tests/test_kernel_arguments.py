"""Wrong arguments to a Cython kernel raise, and leave every output as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_cases import KERNEL, PASSES, Backend, Case, arguments, backends

CYTHON = [backend for backend in backends() if backend.name.startswith("cython")]
pytestmark = pytest.mark.skipif(not CYTHON, reason="built without a C compiler")
BACKENDS = pytest.mark.parametrize("backend", CYTHON, ids=str)
CALLS = pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, id=f"{family}_{name}")
        for family in ("nchw", "nc")
        for name in PASSES
    ],
)


def _shorter(a: Any) -> Any:
    return a[:-1].copy()


def _longer(a: Any) -> Any:
    return np.concatenate([a, a])


def _strided(a: Any) -> Any:
    return np.repeat(a, 2)[::2]


def _reversed(a: Any) -> Any:
    return a[::-1]


def _integer(a: Any) -> Any:
    return np.zeros(a.shape, np.int64)


def _complex(a: Any) -> Any:
    return np.zeros(a.shape, np.complex128)


def _half(a: Any) -> Any:
    return np.zeros(a.shape, np.float16)


def _swapped(a: Any) -> Any:
    return a.astype(a.dtype.newbyteorder("S"))


def _unaligned(a: Any) -> Any:
    memory = np.zeros(a.nbytes + 1, np.uint8)[1:]
    return memory.view(a.dtype)


def _list(a: Any) -> Any:
    return a.tolist()


def _buffer(a: Any) -> Any:
    return memoryview(a)


ARRAY_FAULTS = [
    *(_shorter, _longer, _strided, _reversed, _integer, _complex, _half, _swapped, _unaligned),
    *(_list, _buffer),
]


def _inputs(case: Case, name: str) -> dict[str, Any]:
    values = arguments(case, mean=np.zeros(case.groups), var=np.ones(case.groups))
    values.update(rstd=np.ones(case.groups), sum_dy=np.zeros(case.groups))
    values.update(sum_dy_xmu=np.zeros(case.groups))
    if name == "moments":
        values.update(mean=np.zeros(case.cells), m2=np.zeros(case.cells))
    return values


def _refused(backend: Backend, case: Case, name: str, values: dict[str, Any]) -> bool:
    outputs = KERNEL[case.family, name].outputs
    before = {key: np.array(values[key]) for key in outputs}
    try:
        backend.run(case.family, name, values)
    except (ValueError, TypeError):
        return all(np.array_equal(values[key], before[key], equal_nan=True) for key in outputs)
    return False


@BACKENDS
@CALLS
@pytest.mark.parametrize("fault", ARRAY_FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_wrong_array_is_refused(
    backend: Backend, family: str, name: str, fault: Callable[[Any], Any]
) -> None:
    case = Case(family, (3, 5, 7))
    accepted = []
    for key in KERNEL[family, name].arguments:
        values = _inputs(case, name)
        if isinstance(values[key], np.ndarray):
            if fault in (_list, _buffer) and key in KERNEL[family, name].outputs:
                values[key] = fault(values[key])
                with pytest.raises((ValueError, TypeError)):
                    backend.run(family, name, values)
                continue
            values[key] = fault(values[key])
            if not _refused(backend, case, name, values):
                accepted.append(key)
    assert accepted == []


@BACKENDS
@CALLS
def test_none_is_refused_where_it_means_nothing(backend: Backend, family: str, name: str) -> None:
    case = Case(family, (3, 5, 7))
    for key in KERNEL[family, name].arguments:
        if key not in ("weight", "bias", "training"):
            with pytest.raises((ValueError, TypeError)):
                backend.run(family, name, {**_inputs(case, name), key: None})


@BACKENDS
@CALLS
def test_read_only_output_is_refused(backend: Backend, family: str, name: str) -> None:
    case = Case(family, (3, 5, 7))
    for key in KERNEL[family, name].outputs:
        values = _inputs(case, name)
        values[key].flags.writeable = False
        assert _refused(backend, case, name, values), key


@BACKENDS
@CALLS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_of_two_dtypes_are_refused(
    backend: Backend, family: str, name: str, dtype: str
) -> None:
    case = Case(family, (3, 5, 7), dtype)
    given = [key for key in KERNEL[family, name].arguments if key in ("x", "y", "dy", "dx")]
    if len(given) == 1:
        given = ["mean"] if dtype == "float64" else []  # a statistic is float64
    other = np.float32 if dtype == "float64" else np.float64
    for key in given:
        values = _inputs(case, name)
        values[key] = values[key].astype(other)
        assert _refused(backend, case, name, values), key


@BACKENDS
@CALLS
@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(backend: Backend, family: str, name: str, threads: int) -> None:
    case = Case(family, (3, 5, 7))
    assert _refused(backend, case, name, _inputs(case, name) | {"threads": threads})


@BACKENDS
@CALLS
def test_sizes_that_do_not_fit_the_arrays_are_refused(
    backend: Backend, family: str, name: str
) -> None:
    case = Case(family, (3, 5, 7))
    # Two negative sizes have a positive product; the last two products leave 64 bits, and the
    # very last is 105 again when it does.
    for sizes in ((3, 5, 8), (-3, -5, 7), (-3, 5, -7), (3, -5, -7), (5, 3, 7), (3, 7, 5),
                  (105, 2**32 + 1, 2**32), (13, 5, 8513881880173639209)):  # fmt: skip
        values = _inputs(case, name)
        names = ("n", "c", "s") if family == "nchw" else ("b", "m", "c")
        values.update(zip(names, sizes, strict=True))
        fits = np.prod(sizes, dtype=object) == 105 and min(sizes) > 0
        if fits and name in ("reduce_grads", "apply_grads", "apply", "moments"):
            # Same elements in another shape: only the statistics can tell.
            probe = Case(family, sizes)
            if probe.cells == case.cells and name == "moments":
                continue
            if (probe.groups, probe.cells) == (case.groups, case.cells):
                continue
        assert _refused(backend, case, name, values), sizes


@BACKENDS
@CALLS
def test_arrays_of_any_rank_are_taken(backend: Backend, family: str, name: str) -> None:
    case = Case(family, (3, 5, 7))
    flat, shaped = _inputs(case, name), _inputs(case, name)
    for key in ("x", "y", "dx", "dy"):
        shaped[key] = shaped[key].reshape(3, 5, 7, 1)
    backend.run(family, name, flat)
    backend.run(family, name, shaped)
    for key in KERNEL[family, name].outputs:
        assert np.array_equal(flat[key], shaped[key].reshape(-1)), key
        assert np.isfinite(flat[key]).all()


@BACKENDS
@pytest.mark.parametrize("key", ["running_mean", "running_var", "mean", "var"])
@pytest.mark.parametrize("fault", ARRAY_FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_wrong_running_statistics_are_refused(
    backend: Backend, key: str, fault: Callable[[Any], Any]
) -> None:
    values = {name: np.ones(6) for name in ("running_mean", "running_var", "mean", "var")}
    values |= {"num_batches_tracked": np.array(0), "momentum": 0.1, "count": 9}
    values |= {"skip_nonfinite": False, key: fault(values[key])}
    before = {name: np.array(given) for name, given in values.items()}
    with pytest.raises((ValueError, TypeError)):
        backend.run("running", "update", values)
    for name, old in before.items():
        assert np.array_equal(np.array(values[name]), old)
