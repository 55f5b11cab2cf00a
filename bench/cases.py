"""The list of cases: layers, shapes, layouts, dtypes, and the real data that fills them.

Nothing here is random. Images come from scikit-learn's two photographs (pixel values 0..255),
tables from its handwritten digits; both ship inside the installed package. Larger working sets
are cut from the same data: every channel of every sample is a crop at its own offset, so that no
two channels hold the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Literal

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Layer = Literal["batch", "group", "instance", "layer", "rms"]


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
    """(n, c, ...): the digits, repeated downwards and, each time rolled, to the right."""
    n, c, *others = shape
    rows = digits()
    blocks = -(-c // rows.shape[1])
    wide = np.hstack([np.roll(rows, 101 * block + shift, axis=0) for block in range(blocks)])
    filled = np.resize(wide[:, :c].astype(np.uint8), (n * prod(others), c))
    return np.moveaxis(filled.reshape(n, *others, c), -1, 1)


@dataclass(frozen=True, slots=True)
class Case:
    """One layer on one array of one layout."""

    name: str
    shape: Shape
    axis: int
    """The channel axis; of layer and RMS norm the normalized one."""
    fill: Callable[[Shape, int], Array]
    """(channels-first shape, shift) -> values; a shift gives other values of the same data."""
    layer: Layer = "batch"
    groups: int = 0
    """Of group norm."""
    dtype: str = "float32"
    activation: str | None = None
    residual: bool = False
    addend: bool = False
    """Whether something is added first, and both the sum and its norm are wanted."""
    target: bool = False
    """Whether the targets of `bench.targets` are promised for it."""

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def fused(self) -> bool:
        """Whether something is fused into the norm, and the unfused composition is a rival."""
        return self.activation is not None or self.residual or self.addend

    @property
    def storage(self) -> np.dtype[Any]:
        """The dtype of x; parameters are float32 whatever it is."""
        return np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)

    @property
    def label(self) -> str:
        added = ("add" if self.addend else "", f"{self.layer} norm")
        after = ("residual" if self.residual else "", self.activation or "")
        what = " + ".join(word for word in (*added, *after) if word)
        return f"{self.name} {self.shape}, {what}, {self.dtype}"

    def values(self, shift: int) -> Array:
        """The data in this case's layout, C-contiguous."""
        others = (size for i, size in enumerate(self.shape) if i not in (0, self.axis))
        filled = np.moveaxis(
            self.fill((self.shape[0], self.channels, *others), shift), 1, self.axis
        )
        return np.ascontiguousarray(filled, np.float32)


BATCH = (
    Case("photos", (2, 3, 427, 640), 1, whole_photographs),
    Case("photos-last", (2, 427, 640, 3), 3, whole_photographs),
    Case("digits", (1797, 64), 1, table),
    Case("nchw-56", (32, 64, 56, 56), 1, crops, target=True),
    Case("nchw-112", (32, 64, 112, 112), 1, crops, target=True),
    Case("nc-1024", (1024, 1024), 1, table, target=True),
    Case("nc-65536", (65536, 256), 1, table, target=True),
    Case("last-56", (32, 56, 56, 64), 3, crops, target=True),
)
FAMILY = (
    Case("ln-768", (8, 128, 768), 2, table, "layer", target=True),
    Case("ln-1024", (64, 512, 1024), 2, table, "layer", target=True),
    Case("ln-256", (32, 4096, 256), 2, table, "layer", target=True),
    Case("rms-768", (8, 128, 768), 2, table, "rms", target=True),
    Case("rms-1024", (64, 512, 1024), 2, table, "rms", target=True),
    Case("rms-256", (32, 4096, 256), 2, table, "rms", target=True),
    Case("ln-channels", (32, 96, 56, 56), 1, crops, "layer"),
    Case("gn-56", (8, 256, 56, 56), 1, crops, "group", 32, target=True),
    Case("in-128", (8, 64, 128, 128), 1, crops, "instance", target=True),
    Case("in-128-last", (8, 128, 128, 64), 3, crops, "instance", target=True),
)
HALVES = (
    Case("nchw-112-bf16", (32, 64, 112, 112), 1, crops, dtype="bfloat16", target=True),
    Case("nc-65536-bf16", (65536, 256), 1, table, dtype="bfloat16", target=True),
    Case("ln-1024-bf16", (64, 512, 1024), 2, table, "layer", dtype="bfloat16", target=True),
)
FUSED = (
    Case(
        *("bn-add-relu", (32, 64, 56, 56), 1, crops),
        residual=True, activation="relu", target=True,
    ),
    Case("ln-gelu", (16, 512, 1024), 2, table, "layer", activation="gelu", target=True),
    Case("add-ln", (16, 512, 1024), 2, table, "layer", addend=True, target=True),
)  # fmt: skip

CASES: tuple[Case, ...] = (*BATCH, *FAMILY, *HALVES, *FUSED)

QUICK_ELEMENTS = 2_000_000
"""``--quick`` leaves out larger cases: their oracle alone takes seconds."""
