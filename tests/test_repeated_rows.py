"""dweight and dbias where the same rows come again and again.

Rounded to float32 one by one, the terms of equal rows are all off alike, and their sum is off by
that many times as much: rounding errors do not average out.
"""

import ml_dtypes
import numpy as np
import pytest

import normcore as nc

TIMES = 4096
CASES = {
    # name: shape of what is repeated, the axes that statistics are over, those that weight is not
    "batch (N, C)": ((16, 24), (0,), (0,)),
    "batch channels-first": ((16, 3, 49), (0, 2), (0, 2)),
    "layer": ((16, 40), (1,), (0,)),
    "layer over axis 1": ((16, 24, 8), (1,), (0, 2)),
}


def bound_of(name, dtype):
    """What README promises."""
    return 1e-5 if name == "layer" and np.dtype(dtype).itemsize == 2 else 1e-6


def gradients(name, dy, x, mean, rstd, weight):
    """By normcore."""
    if name.startswith("batch"):
        return nc.functional.batch_norm_backward(dy, x, mean.ravel(), rstd.ravel(), weight)
    axis = 1 if x.ndim == 3 else None
    statistics = mean.squeeze(1), rstd.squeeze(1)
    return nc.functional.layer_norm_backward(dy, x, *statistics, weight.size, weight, axis=axis)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_errors_of_equal_rows_do_not_add_up(name, dtype, backend):
    shape, along, over = CASES[name]
    rng = np.random.default_rng(3)
    x, dy = (
        np.tile(rng.standard_normal(shape).astype(dtype), (TIMES, *[1] * (len(shape) - 1)))
        for _ in range(2)
    )
    exact, gradient = x.astype(np.float64), dy.astype(np.float64)
    mean, var = exact.mean(along, keepdims=True), exact.var(along, keepdims=True)
    rstd = 1 / np.sqrt(var + 1e-5)
    found = gradients(name, dy, x, mean, rstd, np.ones(shape[1], np.float32))
    for values, summands in (
        (found.dweight, gradient * (exact - mean) * rstd),
        (found.dbias, gradient),
    ):
        truth = summands.sum(over)
        scale = np.maximum(np.sqrt((summands**2).sum(over)), np.abs(truth))
        assert (np.abs(values - truth) / scale).max() <= bound_of(name, dtype)
