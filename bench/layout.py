"""A case as the kernels see it: family, sizes, lengths, and units that do not touch each other.

Which family and sizes a layer on a shape has is `normcore.view`'s choice. Statistics never mix
units: channels in batch norm, samples in group and instance norm, rows or samples in layer and RMS
norm. So an oracle may work on some units at a time: on 25 million elements that is about three
times faster than in one go, because its float64 temporaries then stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
from normcore.kernels.table import SIZES

from bench.cases import Case
from normcore import view

Array = np.ndarray[Any, Any]

BLOCK_ELEMENTS = 1 << 18
LINE = 16
"""Neighbouring channels of nc that share a cache line: blocks of fewer would read it again."""

FULL = ("x", "y", "dy", "dx", "g", "residual", "addend", "total")
"""Arguments that hold all elements."""
PARAMETERS = ("weight", "bias", "dweight", "dbias")


@dataclass(frozen=True, slots=True)
class Layout:
    """Family, sizes and lengths of one case."""

    family: str
    sizes: tuple[int, ...]
    statistics: int
    """Length of mean."""
    parameters: int
    """Length of weight."""
    units: int
    """How many parts of x have statistics of their own."""
    by_channel: bool
    """Whether a unit is a channel (batch norm), which has parameters of its own too."""

    @property
    def elements(self) -> int:
        return prod(self.sizes)

    @property
    def named_sizes(self) -> dict[str, int]:
        return dict(zip(SIZES[self.family], self.sizes, strict=True))

    def blocks(self) -> Iterator[slice]:
        """All units, some at a time."""
        least = LINE if self.by_channel and self.family == "nc" else 1
        step = max(BLOCK_ELEMENTS * self.units // self.elements, least)
        for start in range(0, self.units, step):
            yield slice(start, min(start + step, self.units))

    def block(self, units: slice) -> Layout:
        """The layout of some of the units."""
        share = units.stop - units.start
        sizes = list(self.sizes)
        # In nchw, group norm counts the channels of all samples through c.
        axis = 1 if self.family == "nchw" else 2 * self.by_channel
        sizes[axis] = sizes[axis] // self.units * share
        return Layout(
            self.family,
            tuple(sizes),
            self.statistics // self.units * share,
            share if self.by_channel else self.parameters,
            share,
            self.by_channel,
        )

    def part(self, name: str, array: Array, units: slice) -> Array:
        """A view of what belongs to some of the units; parameters that all share come whole."""
        if not self.by_channel:
            return array if name in PARAMETERS else array.reshape(self.units, -1)[units]
        if name in FULL:
            whole = array.reshape(self.sizes)
            return whole[:, units] if self.family == "nchw" else whole[:, :, units]
        return array.reshape(-1, self.units)[:, units]

    def by_statistic(self, values: Array, statistic: Array) -> tuple[Array, Array]:
        """A full array, and one value per statistic, in shapes that broadcast."""
        first, last = self.sizes[0], self.sizes[-1]
        if self.family == "cols" or self.by_channel:
            between = (1, -1, 1) if self.family == "nchw" else (first, 1, last)
            return values.reshape(self.sizes), statistic.reshape(between)
        if self.family == "nc":
            groups = self.statistics // first
            split = values.reshape(first, self.sizes[1], groups, last // groups)
            return split, statistic.reshape(first, 1, groups, 1)
        return values.reshape(self.statistics, -1), statistic.reshape(-1, 1)

    def by_parameter(self, values: Array) -> Array:
        """Sums of a full array over the elements of each parameter."""
        if self.family == "rows":
            found: Array = values.reshape(self.sizes).sum(0)
        elif self.family == "cols":
            found = values.reshape(self.sizes).sum((0, 2))
        elif self.family == "nc":
            found = values.reshape(-1, self.parameters).sum(0)
        else:
            found = values.reshape(-1, self.parameters, self.sizes[2]).sum((0, 2))
        return found


@cache
def layout(case: Case) -> Layout:
    """What normcore itself would choose for a C-contiguous array of this shape."""
    n, channels = case.shape[0], case.channels
    if case.layer == "batch":
        batch = view.contiguous(case.shape, case.axis)
        return Layout(batch.family, batch.sizes, channels, channels, channels, True)
    x = np.empty(case.shape, np.uint8)
    if case.layer in ("group", "instance"):
        _, group = view.group(x, case.axis)
        groups = case.groups or channels
        return Layout(group.family, group.sizes, n * groups, channels, n, False)
    _, layer = view.layer(x, (case.axis,))
    return Layout(
        layer.family,
        layer.sizes,
        case.elements // channels,
        channels,
        layer.sizes[0],
        False,
    )
