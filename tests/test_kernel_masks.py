"""Masks: exact counts, nothing taken from or given to what does not count, nothing kept at all."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from kernel_cases import (
    AFFINE,
    BACKENDS,
    DTYPES,
    HALVES,
    LAYERS,
    Backend,
    Case,
    arguments,
    each,
    kept,
    layout,
)
from kernel_errors import errors, outputs

MASKED = ("forward", "renorm", "activation_grads", "backward")
KINDS = ("all", "random", "tails", "one", "nothing")
SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "nchw": ((3, 7, 5), (2, 9, 49), (5, 2, 1), (4, 3, 4099), (6, 33, 130), (257, 5, 16)),
    "nc": ((1, 9, 5), (3, 50, 17), (1, 4099, 3), (2, 513, 33), (7, 3, 65), (1, 1, 6)),
    "rows": ((5, 6), (7, 49), (70, 69), (33, 768), (3, 40002), (1, 1)),
    "cols": ((1, 9, 5), (3, 50, 17), (2, 4099, 3), (1, 65, 130), (4, 1, 7), (2, 768, 49)),
}
# (family, sizes, d, p): a mask of each of the samples whose channels are counted through, and
# statistics of several channels.
GROUPED = (
    ("nchw", (1, 12, 49), 1, 4), ("nchw", (1, 24, 65), 4, 8), ("nchw", (1, 6, 4099), 3, 6),
    ("nchw", (1, 300, 7), 1, 3), ("nchw", (3, 6, 50), 2, 0), ("nchw", (1, 4, 40009), 2, 2),
    ("nc", (3, 50, 12), 4, 0), ("nc", (2, 517, 6), 6, 0), ("nc", (5, 7, 35), 5, 0),
    ("nc", (1, 4099, 6), 2, 0),
)  # fmt: skip


def _cases() -> list[Case]:
    dtypes, offsets = cycle((*DTYPES, "float32")), cycle((0.0, 1e3, 1e4, 1e6))
    threads = cycle((1, 2, 3, 2, 1))
    affine = cycle((*AFFINE, ("own", "own"), ("own", "own")))
    fused = cycle(i % 3 == 0 for i in range(11))
    found = []
    for family, shapes in SIZES.items():
        for sizes in shapes:
            for kind in KINDS:
                case = Case(family, sizes, next(dtypes), next(offsets), *next(affine), mask=kind)
                found.append(_fuse(replace(case, threads=next(threads)), next(fused)))
                if family in LAYERS:
                    found[-1] = replace(found[-1], centre=len(found) % 3 > 0)
    for family, sizes, d, p in GROUPED:
        for kind in KINDS[1:]:
            case = Case(family, sizes, next(dtypes), next(offsets), *next(affine), mask=kind)
            found.append(_fuse(replace(case, threads=next(threads), d=d, p=p), next(fused)))
    return found


def _fuse(case: Case, fused: bool) -> Case:
    addend = fused and case.family in LAYERS
    return replace(case, residual=fused, addend=addend, activation="silu" if fused else None)


@BACKENDS
@each(_cases())
def test_masked_passes_stay_within_their_tolerance(backend: Backend, case: Case) -> None:
    assert errors(backend, case, *MASKED) == {}


@BACKENDS
@each(
    Case(family, sizes, dtype, mask=kind)
    for family, shapes in SIZES.items()
    for sizes, dtype, kind in zip(
        shapes[:4], [*HALVES] * 2, ("random", "tails", "tails", "random"), strict=True
    )
)
def test_masked_halves_stay_within_their_tolerance(backend: Backend, case: Case) -> None:
    assert errors(backend, case, *MASKED) == {}


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", SIZES)
def test_what_does_not_count_changes_no_bit(backend: Backend, family: str, dtype: str) -> None:
    for sizes in SIZES[family][:5]:
        case = Case(family, sizes, dtype, 1e3, mask="tails", threads=2)
        where = kept(case)
        random = np.random.default_rng(1)
        before = arguments(case)
        other = {}
        for name in ("x", "dy"):
            other[name] = before[name].copy()
            other[name][~where] = random.normal(-50, 300, np.count_nonzero(~where))
        found, again = outputs(backend, case), outputs(backend, case, **other)
        told = where | (found["forward rstd"] == 0)[layout(case).statistic]
        for name in ("mean", "rstd"):
            assert np.array_equal(found[f"forward {name}"], again[f"forward {name}"]), sizes
        assert np.array_equal(found["forward y"][told], again["forward y"][told]), sizes
        for name in ("dx", "dweight", "dbias"):
            assert np.array_equal(found[f"backward {name}"], again[f"backward {name}"]), sizes


@BACKENDS
@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@pytest.mark.parametrize("family", SIZES)
def test_nothing_kept_gives_exactly_bias(backend: Backend, family: str, dtype: str) -> None:
    for sizes in SIZES[family][:5]:
        case = Case(family, sizes, dtype, mask="nothing", threads=2)
        x = np.full(np.prod(sizes), np.nan, case.storage)
        bias = arguments(case)["bias"].astype(case.storage)[layout(case).parameter]
        values = arguments(case, x=x)
        backend.run(family, "forward", values)
        assert not values["mean"].any()
        assert not values["rstd"].any()
        assert np.array_equal(values["y"], bias)
        values |= {"dy": x}
        backend.run(family, "backward", values)
        for name in ("dx", "dweight", "dbias"):
            assert not values[name].any(), name
        if "renorm" in case.passes:
            values = arguments(case, x=x)
            backend.run(family, "renorm", values)
            for name, want in (("mean", 0), ("var", 0), ("rstd", 0), ("r", 1), ("d", 0)):
                assert np.all(values[name] == want), name
            assert np.array_equal(values["y"], bias)


@BACKENDS
@pytest.mark.parametrize("family", SIZES)
def test_nothing_kept_of_one_leaves_the_others_as_they_were(backend: Backend, family: str) -> None:
    # A padded sample between others: their results are those of a batch that never had it.
    sizes = {"nchw": (1, 12, 65), "nc": (3, 65, 4), "rows": (12, 65), "cols": (3, 65, 4)}[family]
    case = Case(family, sizes, offset=1e3, p=4 if family == "nchw" else 0, mask="all")
    found = outputs(backend, replace(case, mask=None))
    mask = arguments(case)["mask"]
    gone = {"nchw": slice(65, 130), "nc": slice(65, 130), "cols": slice(4, 8)}
    mask[gone.get(family, slice(mask.size // 12 * 4, mask.size // 12 * 8))] = 0
    masked = outputs(backend, case, mask=mask)
    alive = np.ones(12, bool)
    alive[4:8] = False
    elements = alive[layout(case).statistic]
    for name in ("forward y", "backward dx"):
        difference = np.abs(found[name] - masked[name])[elements]
        assert difference.max() <= 1e-6 * np.abs(found[name]).max()
        assert np.isfinite(masked[name]).all()
    assert not masked["backward dx"][~elements].any()
    assert not masked["forward rstd"][~alive].any()
    np.testing.assert_allclose(masked["forward mean"][alive], found["forward mean"][alive], 1e-9)
