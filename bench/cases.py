"""The list of cases: shapes, layouts, and the real data that fills them.

Nothing here is random. Images come from scikit-learn's two photographs (pixel values 0..255),
tables from its handwritten digits; both ship inside the installed package. Larger working sets
are cut from the same data: every channel of every sample is a crop at its own offset, so that no
two channels hold the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from normcore.view import View, contiguous

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@lru_cache(maxsize=1)
def photographs() -> Array:
    """Both photographs, (2, 427, 640, 3) uint8."""
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)


@lru_cache(maxsize=1)
def digits() -> Array:
    """8x8 images of handwritten digits as rows, (1797, 64), values 0..16."""
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().data)


def whole_photographs(shape: Shape, shift: int) -> Array:
    """The photographs as they are, (n, 3, 427, 640), sample i being photograph i + shift."""
    images = np.roll(photographs(), shift, axis=0)
    return np.resize(images, (shape[0], *images.shape[1:])).transpose(0, 3, 1, 2)


def crops(shape: Shape, shift: int) -> Array:
    """(n, c, h, w): channel j of sample i is one colour of one photograph, cropped."""
    n, c, height, width = shape
    images = photographs()
    found = np.empty(shape, np.uint8)
    for i in range(n):
        for j in range(c):
            step = i * c + j + shift
            top = 37 * step % (images.shape[1] - height + 1)
            left = 53 * step % (images.shape[2] - width + 1)
            image = images[(i + shift) % 2, top : top + height, left : left + width]
            found[i, j] = image[:, :, j % 3]
    return found


def table(shape: Shape, shift: int) -> Array:
    """(n, c): the digits, repeated downwards and, each time rolled, to the right."""
    c = shape[1]
    rows = digits()
    blocks = -(-c // rows.shape[1])
    wide = np.hstack([np.roll(rows, 101 * block + shift, axis=0) for block in range(blocks)])
    return np.resize(wide[:, :c], shape)


@dataclass(frozen=True, slots=True)
class Case:
    """One array of one layout. `axis` is the channel axis of `shape`."""

    name: str
    shape: Shape
    axis: int
    fill: Callable[[Shape, int], Array]
    """(channels-first shape, shift) -> values; a shift gives other values of the same data."""
    target: bool = False
    """Whether the targets of `bench.targets` are promised for it."""

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))

    @property
    def view(self) -> View:
        """Family and sizes, as normcore itself chooses them."""
        return contiguous(self.shape, self.axis)

    @property
    def axes(self) -> tuple[int, ...]:
        """Every axis but the channel's."""
        return tuple(axis for axis in range(len(self.shape)) if axis != self.axis)

    @property
    def label(self) -> str:
        return f"{self.name} {self.shape}"

    def values(self, shift: int) -> Array:
        """The data in this case's layout, C-contiguous float32."""
        first = (self.shape[0], self.channels, *(self.shape[axis] for axis in self.axes[1:]))
        filled = np.moveaxis(self.fill(first, shift), 1, self.axis)
        return np.ascontiguousarray(filled, np.float32)


CASES: tuple[Case, ...] = (
    Case("photos", (2, 3, 427, 640), 1, whole_photographs),
    Case("photos-last", (2, 427, 640, 3), 3, whole_photographs),
    Case("digits", (1797, 64), 1, table),
    Case("nchw-56", (32, 64, 56, 56), 1, crops, target=True),
    Case("nchw-112", (32, 64, 112, 112), 1, crops, target=True),
    Case("nc-1024", (1024, 1024), 1, table, target=True),
    Case("nc-65536", (65536, 256), 1, table, target=True),
    Case("last-56", (32, 56, 56, 64), 3, crops, target=True),
)

QUICK_ELEMENTS = 2_000_000
"""``--quick`` leaves out larger cases: their oracle alone takes seconds."""
