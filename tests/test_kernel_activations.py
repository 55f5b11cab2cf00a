"""Activations and residuals that are fused into a pass, and the gradient before the activation."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from kernel_cases import BACKENDS, DTYPES, HALVES, Backend, Case, arguments, each, layout
from kernel_errors import errors
from kernel_truth import saved
from normcore.kernels.table import ACTIVATIONS

FUSED = ("apply", "forward", "renorm", "activation_grads", "activation_backward")
SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "nchw": ((3, 7, 5), (2, 9, 49), (2, 3, 4099), (6, 33, 64), (300, 5, 7), (1, 2, 20011)),
    "nc": ((1, 9, 5), (3, 50, 17), (1, 4099, 3), (1, 65, 130), (7, 3, 64), (2, 1031, 9)),
    "rows": ((5, 7), (7, 49), (70, 64), (33, 768), (3, 20011), (999, 3)),
    "cols": ((1, 9, 5), (3, 50, 17), (1, 4099, 3), (1, 65, 130), (7, 3, 64), (2, 768, 49)),
}
FAMILIES = pytest.mark.parametrize("family", SIZES)


def _cases() -> list[Case]:
    found = []
    offsets, residual = cycle((0.0, 1e3, 0.0, 1e6, 1e4)), cycle((True, True, False))
    affine = cycle((("own", "own"), ("own", "own"), (None, None), ("other", "other"),
                    ("own", None), (None, "own"), ("own", "own")))  # fmt: skip
    threads, centre = cycle((1, 2, 3)), cycle((True, True, False, True))
    for family, shapes in SIZES.items():
        shape = cycle(shapes)
        for activation in ACTIVATIONS:
            for dtype in (*DTYPES, *HALVES):
                case = Case(family, next(shape), dtype, activation=activation)
                offset = next(offsets)
                case = replace(case, offset=offset if dtype in DTYPES else 0.0)
                weight, bias = next(affine)
                case = replace(case, weight=weight, bias=bias, threads=next(threads))
                case = replace(case, residual=next(residual) or activation is None)
                if family in ("rows", "cols"):
                    case = replace(case, centre=next(centre))
                found.append(case)
            next(shape)
    return found


@BACKENDS
@each(_cases())
def test_fused_passes_stay_within_their_tolerance(backend: Backend, case: Case) -> None:
    assert errors(backend, case, *FUSED) == {}


@BACKENDS
@each(
    Case(family, sizes, dtype, addend=True, centre=centre, mask=mask)
    for family in ("rows", "cols")
    for sizes, dtype, centre, mask in zip(
        SIZES[family],
        ("float32", "float64", *HALVES, "float32", "float64"),
        (True, True, True, False, False, True),
        (None, "random", None, None, None, None),
        strict=True,
    )
)
def test_addend_is_added_to_dx(backend: Backend, case: Case) -> None:
    assert errors(backend, case, "backward") == {}


@BACKENDS
@each(
    Case(family, sizes, dtype, activation=activation, residual=activation == "relu", d=d, p=p)
    for family, sizes, d, p in (
        ("nchw", (1, 24, 65), 4, 8),
        ("nchw", (1, 12, 49), 1, 4),
        ("nc", (3, 50, 12), 4, 0),
    )
    for dtype, activation in (("float32", "relu"), ("float64", "gelu"))
)
def test_fused_groups_stay_within_their_tolerance(backend: Backend, case: Case) -> None:
    assert errors(backend, case, *FUSED) == {}


@BACKENDS
@each(
    replace(case, offset=0.0, mask=("random", "tails", "one", "nothing")[index % 4])
    for index, case in enumerate(_cases())
    if index % 3 == 0
)
def test_what_is_masked_gets_no_gradient(backend: Backend, case: Case) -> None:
    assert errors(backend, case, "activation_backward") == {}


@BACKENDS
@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@FAMILIES
def test_gradients_may_take_the_place_of_inputs(backend: Backend, family: str, dtype: str) -> None:
    case = Case(family, SIZES[family][1], dtype, residual=True, activation="gelu", threads=2)
    given = saved(case)
    apart = arguments(case, **given)
    backend.run(family, "activation_backward", apart)
    for pairs in ((("dx", "dy"),), (("dx", "x"),), (("g", "dy"),), (("dx", "x"), ("g", "dy"))):
        values = arguments(case, **given)
        values |= {output: values[taken] for output, taken in pairs}
        backend.run(family, "activation_backward", values)
        for name in ("dx", "dweight", "dbias", "g"):
            if name in dict(pairs) or name != "g":
                assert np.array_equal(values[name], apart[name]), (name, pairs)


@BACKENDS
@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@pytest.mark.parametrize("name", list(ACTIVATIONS)[1:4])
@FAMILIES
def test_activations_are_exact_at_their_kinks(
    backend: Backend, family: str, dtype: str, name: str
) -> None:
    # Constant data: before the activation y is exactly bias.
    sizes = (2, 7, 49) if family != "rows" else (9, 91)
    case = Case(family, sizes, dtype, activation=name)
    x = np.full(np.prod(sizes), 3, case.storage)
    bias = np.resize(np.array([0, 6, -1, 2, 7, -8, 5.5]), case.parameters)
    values = arguments(case, x=x, bias=bias.astype(case.parameter_dtype("own")))
    backend.run(family, "forward", values)
    z = bias[layout(case).parameter]
    want, slope = {
        "relu": (np.maximum(z, 0), z > 0),
        "relu6": (np.clip(z, 0, 6), (z > 0) & (z < 6)),
        "leaky_relu": (np.where(z < 0, 0.01 * z, z), np.where(z > 0, 1, 0.01)),
    }[name]
    assert np.array_equal(values["y"], want.astype(np.float32).astype(case.storage)) or (
        dtype == "float64" and np.array_equal(values["y"], want)
    )
    values["dy"] = np.full_like(x, 2)
    backend.run(family, "activation_grads", values)
    want = 2 * slope.astype(np.float64)
    assert np.array_equal(values["g"], want.astype(np.float32).astype(case.storage)) or (
        dtype == "float64" and np.array_equal(values["g"], want)
    )


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(ACTIVATIONS)[1:])
@FAMILIES
def test_activations_far_from_zero(backend: Backend, family: str, dtype: str, name: str) -> None:
    # Where exp and erf leave the range of numbers: 0 or z, never NaN.
    sizes = (2, 7, 49) if family != "rows" else (9, 91)
    case = Case(family, sizes, dtype, activation=name, weight=None)
    x = np.full(np.prod(sizes), 3, dtype)
    bias = np.resize(np.array([-1e30, 1e30, -1e4, 1e4, -130, 130, -89, 89, -38, 38]),
                     case.parameters).astype(dtype)  # fmt: skip
    values = arguments(case, x=x, bias=bias)
    backend.run(family, "forward", values)
    z = bias[layout(case).parameter].astype(np.float64)
    least = {"leaky_relu": 0.01 * z}.get(name, np.zeros(z.shape))
    want = np.where(z > 0, np.minimum(z, 6) if name == "relu6" else z, least)
    assert np.abs(values["y"] - want).max() <= 1e-6 * np.abs(z).max()
    assert (np.abs(values["y"] - want) <= 1e-6 * np.maximum(1, np.abs(want))).all()
    values["dy"] = np.ones_like(x)
    backend.run(family, "activation_grads", values)
    slope = np.where(z > 0, 1 if name != "relu6" else 0, 0.01 if name == "leaky_relu" else 0)
    assert np.abs(values["g"] - slope).max() <= 1e-6
