"""The one list of cases: layers on the shapes of real networks, from L1 to beyond the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import ml_dtypes
import numpy as np

from bench.data import Array, Shape, crops, table, whole_photographs

Layer = Literal["batch", "group", "instance", "layer", "rms"]

SUFFIX = {"float64": "f64", "float16": "f16", "bfloat16": "bf16"}
"""dtype -> what a case of that dtype ends in."""


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
    every: bool = False
    """Whether the unfused passes are measured too."""
    offset: float = 0.0
    """What is added to x, in its standard deviations."""
    model: str = ""
    """Where such an array comes from."""

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of x."""
        return self.elements * self.storage.itemsize

    @property
    def fused(self) -> bool:
        """Whether something is fused into the norm, and the unfused composition is a rival."""
        return self.activation is not None or self.residual or self.addend

    @property
    def storage(self) -> np.dtype[Any]:
        """The dtype of x; parameters are float32 unless it is float64."""
        return np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)

    @property
    def label(self) -> str:
        added = ("add" if self.addend else "", f"{self.layer} norm")
        after = ("residual" if self.residual else "", self.activation or "")
        what = " + ".join(word for word in (*added, *after) if word)
        origin = f", {self.model}" if self.model else ""
        return f"{self.name} {self.shape}, {what}, {self.dtype}{origin}"

    def of_dtype(self, dtype: str) -> Case:
        """The same case in another dtype, named after it."""
        if dtype == self.dtype:
            return self
        return replace(self, name=f"{self.name}-{SUFFIX[dtype]}", dtype=dtype, every=False)

    def values(self, shift: int) -> Array:
        """The data in this case's layout, C-contiguous."""
        others = (size for i, size in enumerate(self.shape) if i not in (0, self.axis))
        filled = np.moveaxis(
            self.fill((self.shape[0], self.channels, *others), shift), 1, self.axis
        )
        return np.ascontiguousarray(filled, np.float32)


IMAGES = (
    Case("photos", (2, 3, 427, 640), 1, whole_photographs, every=True, model="photographs"),
    Case("photos-last", (2, 427, 640, 3), 3, whole_photographs, model="photographs"),
    Case("nchw-112", (32, 64, 112, 112), 1, crops, model="ResNet-50"),
    Case("nchw-56", (32, 64, 56, 56), 1, crops, model="ResNet-50"),
    Case("nchw-28", (32, 512, 28, 28), 1, crops, model="ResNet-50"),
    Case("nchw-14", (32, 1024, 14, 14), 1, crops, model="ResNet-50"),
    Case("nchw-7", (32, 512, 7, 7), 1, crops, model="ResNet-50"),
    Case("nchw-56-8", (8, 64, 56, 56), 1, crops, model="ResNet-50, 8 images"),
    Case("nchw-56-1", (1, 64, 56, 56), 1, crops, model="ResNet-50, 1 image"),
    Case("nchw-32", (64, 128, 32, 32), 1, crops, model="ResNet on 32x32 images"),
    Case("last-56", (32, 56, 56, 64), 3, crops, model="ResNet-50", every=True),
    Case("mobile-14", (8, 576, 14, 14), 1, crops, model="MobileNetV2"),
    Case("mobile-7", (1, 1280, 7, 7), 1, crops, model="MobileNetV2, 1 image"),
    Case("mobile-last", (32, 28, 28, 192), 3, crops, model="MobileNetV2"),
    Case("unet-256", (2, 64, 256, 256), 1, crops, model="U-Net"),
)
TABLES = (
    Case("mlp-64", (64, 64), 1, table, model="tabular MLP"),
    Case("mlp-128", (256, 128), 1, table, model="tabular MLP"),
    Case("digits", (1797, 64), 1, table, model="handwritten digits"),
    Case("nc-1024", (1024, 1024), 1, table, model="tabular MLP", every=True),
    Case("nc-65536", (65536, 256), 1, table, model="tabular MLP"),
)
SAMPLES = (
    Case("ln-768", (8, 128, 768), 2, table, "layer", model="BERT"),
    Case("bert-512", (32, 512, 768), 2, table, "layer", model="BERT"),
    Case("vit-197", (8, 197, 768), 2, table, "layer", model="ViT-B/16"),
    Case("ln-1024", (64, 512, 1024), 2, table, "layer", model="BERT-large"),
    Case("ln-256", (32, 4096, 256), 2, table, "layer", model="long sequences"),
    Case("rms-768", (8, 128, 768), 2, table, "rms", model="T5"),
    Case("rms-1024", (64, 512, 1024), 2, table, "rms", model="T5-large"),
    Case("rms-256", (32, 4096, 256), 2, table, "rms", model="long sequences"),
    Case("ln-channels", (32, 96, 56, 56), 1, crops, "layer", model="ConvNeXt, channels-first"),
    Case("ln-last", (32, 56, 56, 96), 3, crops, "layer", model="ConvNeXt"),
    Case("gn-56", (8, 256, 56, 56), 1, crops, "group", 32, model="ResNet-50 with group norm"),
    Case("gn-56-last", (8, 56, 56, 256), 3, crops, "group", 32, model="the same, channels-last"),
    Case("gn-64", (2, 320, 64, 64), 1, crops, "group", 32, model="U-Net of a diffusion model"),
    Case("in-128", (8, 64, 128, 128), 1, crops, "instance", model="style transfer"),
    Case("in-128-last", (8, 128, 128, 64), 3, crops, "instance", model="style transfer"),
)
_NAMED = {case.name: case for case in (*IMAGES, *TABLES, *SAMPLES)}
HALVES = (
    *(_NAMED[name].of_dtype("bfloat16") for name in ("nchw-112", "nc-65536", "ln-1024")),
    *(_NAMED[name].of_dtype("float16") for name in ("nchw-112", "nc-65536", "ln-1024")),
)
DOUBLES = tuple(
    _NAMED[name].of_dtype("float64")
    for name in ("nchw-56", "nchw-56-8", "nc-1024", "last-56", "bert-512", "ln-768", "in-128")
)
FUSED = (
    Case(
        *("bn-add-relu", (32, 64, 56, 56), 1, crops),
        residual=True, activation="relu", model="ResNet-50",
    ),
    Case("ln-gelu", (16, 512, 1024), 2, table, "layer", activation="gelu", model="BERT-large"),
    Case("add-ln", (16, 512, 1024), 2, table, "layer", addend=True, model="BERT-large"),
)  # fmt: skip

CASES: tuple[Case, ...] = (*IMAGES, *TABLES, *SAMPLES, *HALVES, *DOUBLES, *FUSED)

QUICK_ELEMENTS = 2_000_000
"""``--quick`` leaves out larger cases: their oracle alone takes seconds."""
CACHED_BYTES = 16 << 20
"""A case whose x is larger counts as beyond the cache; in between, the smallest has 19 MB."""
