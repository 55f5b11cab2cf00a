"""The real data that fills the cases: photographs and handwritten digits.

Nothing here is random. Images come from scikit-learn's two photographs (pixel values 0..255),
tables from its handwritten digits; both ship inside the installed package. Larger working sets
are cut from the same data: every channel of every sample is a crop at its own offset, so that no
two channels hold the same numbers.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

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
    """(n, c, ...): the digits, repeated downwards and, each time rolled, to the right."""
    n, c, *others = shape
    rows = digits()
    blocks = -(-c // rows.shape[1])
    wide = np.hstack([np.roll(rows, 101 * block + shift, axis=0) for block in range(blocks)])
    filled = np.resize(wide[:, :c].astype(np.uint8), (n * prod(others), c))
    return np.moveaxis(filled.reshape(n, *others, c), -1, 1)
