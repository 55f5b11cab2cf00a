"""Arrays and truth for the tests of the public functions and layers."""

from typing import NamedTuple

import numpy as np

from normcore import reference

# (shape, channel axis): every rank, channels first and last, long and short runs, odd sizes, and
# one array that is large enough for several threads.
SHAPES = [
    ((4, 3), 1),
    ((33, 17), -1),
    ((5, 3, 7), 1),
    ((5, 7, 3), -1),
    ((4, 6, 5, 3), 1),
    ((4, 5, 3, 6), 3),
    ((2, 3, 2, 5, 4), 1),
    ((8, 16, 14, 14), 1),
    ((3, 1, 4, 1), 1),
]


class Case(NamedTuple):
    """Inputs of a forward and a backward, and what must come out."""

    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    axis: int
    y: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray
    summands: np.ndarray
    """L2 norm of the summands of dweight, the scale of its rounding error."""

    @property
    def count(self) -> int:
        return self.x.size // self.weight.size


def case(shape, axis=1, dtype=np.float32, offset=0.0, seed=0, eps=1e-5) -> Case:
    """Random arrays, with the oracle's answers in float64."""
    rng = np.random.default_rng(seed)
    c = shape[axis]
    x = (rng.standard_normal(shape) * 2 + offset).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    weight = rng.uniform(0.5, 1.5, c).astype(dtype)
    bias = rng.standard_normal(c).astype(dtype)
    spread = [1] * len(shape)
    spread[axis] = c
    axes = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    wide = weight.astype(np.float64).reshape(spread)
    y, found = reference.batch_norm_forward(x, wide, bias.reshape(spread), eps, axes)
    dx, dweight, dbias = reference.batch_norm_backward(dy, x, wide, eps, axes)
    x_hat = found.deviation / np.sqrt(found.var + eps)
    return Case(
        *(x, dy, weight, bias, axis, y, found.mean.ravel(), found.var.ravel()),
        *(dx, dweight.ravel(), dbias.ravel(), np.sqrt(np.sum((dy * x_hat) ** 2, axes))),
    )


def tolerance(dtype) -> float:
    """max |error| / max(1, |truth|) of y and dx (DESIGN.md, "Numerics")."""
    return 1e-6 if np.dtype(dtype) == np.float32 else 4e-15


def assert_close(found, truth, bound, scale=None) -> None:
    scale = np.maximum(1, np.abs(truth)) if scale is None else np.maximum(scale, 1)
    assert found.shape == truth.shape
    error = np.abs(found - truth) / scale
    assert np.all(error <= bound), f"error {error.max():.3g} > {bound:.3g}"


def layouts(x):
    """The same values in every memory layout: (name, array)."""
    yield "contiguous", x.copy()
    yield "fortran", np.asfortranarray(x)
    order = (0, *range(2, x.ndim), 1)
    back = np.argsort(order)
    yield "channels-last", np.ascontiguousarray(x.transpose(order)).transpose(back)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    yield "strided", wide[..., ::2]
    yield "negative strides", np.ascontiguousarray(x[::-1])[::-1]
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    yield "unaligned", raw
    yield "byte-swapped", x.astype(x.dtype.newbyteorder())
    fixed = x.copy()
    fixed.flags.writeable = False
    yield "read-only", fixed
    yield "list", x.tolist() if x.dtype == np.float64 else x.copy()
