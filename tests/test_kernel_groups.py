"""Statistics of several channels, and parameters that repeat: group and instance norm, renorm."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from kernel_cases import AFFINE, BACKENDS, DTYPES, HALVES, OFFSETS, Backend, Case, arguments, each
from kernel_errors import errors, outputs

# (sizes, channels of a statistic, period of the parameters)
NCHW = (
    ((1, 12, 49), 1, 4), ((1, 6, 4097), 1, 3), ((1, 35, 2), 1, 7), ((1, 600, 5), 1, 3),
    ((1, 24, 49), 4, 8), ((1, 12, 16385), 3, 6), ((1, 192, 7), 32, 64), ((1, 10, 1), 5, 10),
    ((1, 4, 100003), 2, 4), ((1, 512, 196), 16, 256), ((1, 65, 3), 65, 65), ((1, 2049, 5), 3, 3),
    ((3, 6, 49), 2, 6), ((4, 6, 9), 1, 3), ((700, 4, 11), 4, 4), ((1, 1024, 64), 8, 32),
)  # fmt: skip
NC = (
    ((3, 50, 8), 4), ((2, 33, 70), 35), ((4, 7, 6), 6), ((2, 4099, 12), 3), ((1, 600, 30), 5),
    ((5, 196, 256), 8), ((2, 1, 6), 3), ((300, 3, 4), 2), ((1, 65537, 4), 2), ((3, 129, 65), 13),
    ((2, 20, 2050), 1025), ((1, 5, 4099), 4099), ((7, 1, 5), 1), ((4, 513, 32), 1),
)  # fmt: skip


def _cases() -> list[Case]:
    offsets, affine, threads = cycle(OFFSETS), cycle(AFFINE), cycle((1, 2, 3))
    found = []
    for family, sizes, d, p in (
        *(("nchw", *group) for group in NCHW),
        *(("nc", *group, 0) for group in NC),
    ):
        for dtype in DTYPES:
            case = Case(family, sizes, dtype, next(offsets), *next(affine), next(threads))
            found.append(replace(case, d=d, p=p))
        next(offsets)
    halves = [replace(case, dtype=dtype, offset=10.0)
              for case, dtype in zip(found[::3], cycle(HALVES), strict=False)]  # fmt: skip
    return found + halves


@BACKENDS
@each(_cases())
def test_groups_stay_within_their_tolerance(backend: Backend, case: Case) -> None:
    assert errors(backend, case) == {}


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_give_the_same_bits_for_any_thread_count(backend: Backend, dtype: str) -> None:
    for family, sizes, d, p in (
        ("nchw", (1, 512, 196), 16, 256), ("nchw", (1, 4, 100003), 2, 4),
        ("nc", (5, 196, 256), 8, 0), ("nc", (2, 20011, 12), 3, 0),
    ):  # fmt: skip
        case = Case(family, sizes, dtype, 1e3, d=d, p=p)
        first, *others = (outputs(backend, case, threads=threads) for threads in (1, 2, 3))
        for found in others:
            for name, values in first.items():
                assert np.array_equal(values, found[name]), (sizes, name)


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_group_gives_exactly_bias(backend: Backend, dtype: str) -> None:
    for family, sizes, d, p in (("nchw", (1, 24, 49), 4, 8), ("nc", (3, 50, 8), 4, 0)):
        case = Case(family, sizes, dtype, d=d, p=p)
        values = arguments(case, x=np.full(np.prod(sizes), 0.1, dtype))
        backend.run(family, "forward", values)
        assert not values["var"].any()
        bias = np.resize(values["bias"], sizes[1 if family == "nchw" else 2])
        by_channel = np.moveaxis(values["y"].reshape(sizes), 1 if family == "nchw" else 2, -1)
        assert np.array_equal(by_channel, np.broadcast_to(bias, by_channel.shape))


@BACKENDS
@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(
    ("family", "sizes"),
    [("nchw", (3, 7, 49)), ("nchw", (2, 3, 16385)), ("nc", (1, 513, 33)), ("nc", (3, 50, 7))],
)
def test_renorm_with_limits_1_and_0_is_forward_to_the_bit(
    backend: Backend, family: str, sizes: tuple[int, ...], dtype: str, fused: bool
) -> None:
    case = Case(family, sizes, dtype, 10.0 if dtype in HALVES else 1e4, threads=2)
    if fused:
        case = replace(case, residual=True, mask="random", activation="silu")
    forward, renorm = arguments(case), arguments(case, r_max=1.0, d_max=0.0)
    backend.run(family, "forward", forward)
    backend.run(family, "renorm", renorm)
    for name in ("y", "mean", "var", "rstd"):
        assert np.array_equal(forward[name], renorm[name]), name
    assert np.all(renorm["r"] == 1)
    assert not renorm["d"].any()


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_renorm_clips_to_its_limits(backend: Backend, dtype: str) -> None:
    # sigma = 2, mean = 5 (eps = 0), against running statistics on both sides of every limit.
    running_mean = np.array([5, 5, 4, -90, 90, 5.5, 5])
    running_var = np.array([4, 1, 4, 4, 4, 1e-4, 400])
    r = [1, 2, 1, 1, 1, 3, 1 / 3]
    d = [0, 0, 0.5, 5, -5, -5, 0]
    for family, sizes in (("nchw", (2, 7, 8)), ("nc", (1, 16, 7))):
        case = Case(family, sizes, dtype, weight=None, bias=None)
        axis = 1 if family == "nchw" else 2
        each_ = np.resize([3.0, 7.0], 16)
        x = np.moveaxis(np.broadcast_to(each_, (7, 16)).reshape(7, 2, 8), 0, 1)
        x = x if axis == 1 else np.broadcast_to(each_[:, None], (16, 7))
        values: dict[str, Any] = arguments(
            case, x=np.ascontiguousarray(x, dtype).reshape(-1), eps=0.0, r_max=3.0, d_max=5.0,
            running_mean=running_mean, running_var=running_var,
        )  # fmt: skip
        backend.run(family, "renorm", values)
        np.testing.assert_allclose(values["r"], r, rtol=1e-15)
        np.testing.assert_allclose(values["d"], d, rtol=1e-15, atol=1e-15)
        y = np.moveaxis(values["y"].reshape(sizes), axis, -1).reshape(16, 7)
        want = np.where(each_[:, None] > 5, 1, -1) * np.array(r) + d
        np.testing.assert_allclose(y, want, rtol=1e-6)
