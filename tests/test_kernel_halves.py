"""float16 and bfloat16: storage only, rounded once, parameters of either precision beside them."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
from kernel_cases import (
    BACKENDS,
    CHANNELS,
    FAMILY_SIZES,
    HALVES,
    Backend,
    Case,
    arguments,
    each,
    layout,
)
from kernel_errors import errors, outputs
from kernel_truth import error

# What a half can hold; from 2048 (float16) and 256 (bfloat16) on, steps are 1 or more.
OFFSETS = {"float16": (0.0, 10.0, 1e3, 3e4), "bfloat16": (0.0, 10.0, 1e3, 1e6)}
AFFINE = (("own", "own"), ("own", "own"), (None, None), ("other", "other"), ("own", None))
FAMILIES = pytest.mark.parametrize("family", FAMILY_SIZES)
EACH_HALF = pytest.mark.parametrize("dtype", HALVES)


def _cases() -> list[Case]:
    found = []
    for family, shapes in FAMILY_SIZES.items():
        offsets = {dtype: cycle(values) for dtype, values in OFFSETS.items()}
        affine, threads, centre = cycle(AFFINE), cycle((1, 2, 3)), cycle((True, True, True, False))
        for index, sizes in enumerate(shapes):
            dtype = list(HALVES)[index % 2]
            for _ in range(2):
                found.append(
                    Case(
                        *(family, sizes, dtype, next(offsets[dtype]), *next(affine), next(threads)),
                        centre=family in CHANNELS or next(centre),
                    )
                )
            next(offsets[dtype]), next(affine)
    return found


@BACKENDS
@each(_cases())
def test_every_pass_rounds_once(backend: Backend, case: Case) -> None:
    assert errors(backend, case) == {}


@BACKENDS
@EACH_HALF
@FAMILIES
def test_every_length_up_to_70(backend: Backend, family: str, dtype: str) -> None:
    wrong = {}
    for k in range(1, 71):
        sizes = {"nchw": (2, 3, k), "nc": (1, 5, k), "rows": (5, k), "cols": (2, 5, k)}[family]
        found = errors(backend, Case(family, sizes, dtype, 10.0))
        wrong |= {(k, name): size for name, size in found.items()}
    assert wrong == {}


@BACKENDS
@EACH_HALF
@FAMILIES
def test_every_half_is_read_and_written(backend: Backend, family: str, dtype: str) -> None:
    # Statistics 0 and 1, no parameters: `apply` and evaluation give back what was read.
    bits = np.arange(2**16, dtype=np.uint16).view(HALVES[dtype])
    with np.errstate(invalid="ignore"):
        bits = bits[np.isfinite(bits.astype(np.float32))]
    m = bits.size // 2
    sizes = {"nchw": (m, 2, 1), "nc": (1, m, 2), "rows": (2, m), "cols": (1, m, 2)}[family]
    case = Case(family, sizes, dtype, weight=None, bias=None)
    given = {"mean": np.zeros(2), "var": np.ones(2), "rstd": np.ones(2), "eps": 0.0}
    if family in CHANNELS:
        values = arguments(case, x=bits, **given)
        backend.run(family, "apply", values)
        assert np.array_equal(values["y"], bits)
        values = arguments(case, dy=bits, **given, training=False)
        backend.run(family, "backward", values)
        assert np.array_equal(values["dx"], bits)
    values = arguments(case, dy=bits, **given, activation=1, bias=None)
    backend.run(family, "activation_grads", values)
    x = values["x"].astype(np.float32)
    assert np.array_equal(values["g"][x > 0], bits[x > 0])


@BACKENDS
@EACH_HALF
@FAMILIES
def test_results_beyond_the_range_become_infinite(
    backend: Backend, family: str, dtype: str
) -> None:
    # As NumPy's and ml_dtypes' casts do; the largest number is not rounded up.
    sizes = (9, 91) if family == "rows" else (2, 7, 49)
    case = Case(family, sizes, dtype, weight=None)
    largest = 65504.0 if dtype == "float16" else 3.3895314e38
    bias = np.resize(
        np.array([largest, -largest, 65520 if dtype == "float16" else 3.4e38, 1]), case.parameters
    ).astype(np.float32)
    x = np.full(np.prod(sizes), 3, case.storage)
    values = arguments(case, x=x, bias=bias)
    backend.run(family, "forward", values)
    with np.errstate(over="ignore"):
        want = bias.astype(case.storage)
    assert np.isinf(want.astype(np.float32)).any()
    assert np.array_equal(values["y"], want[layout(case).parameter])


@BACKENDS
@EACH_HALF
@FAMILIES
def test_float32_parameters_are_not_rounded(backend: Backend, family: str, dtype: str) -> None:
    # 1 + 2^-12 is no half: rounded to one, it would move a part of all y to the next half.
    case = Case(family, (7, 640) if family == "rows" else (2, 30, 50), dtype, bias=None)
    weight = np.full(case.parameters, 1 + 2**-12, np.float32)
    found = outputs(backend, case, weight=weight)
    of = layout(case).statistic
    x = arguments(case)["x"].astype(np.float64)
    x_hat = (x - found["forward mean"][of]) * found["forward rstd"][of]
    y = found["forward y"]
    assert error(y, x_hat * weight[0], np.maximum(1, np.abs(x_hat))) <= 1e-6
    assert error(y, x_hat, np.maximum(1, np.abs(x_hat))) > 2e-4
    assert found["backward dweight"].dtype == np.float32
