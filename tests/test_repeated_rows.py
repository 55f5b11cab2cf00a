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
    # name: shape of the rows that are repeated, reduced axes of batch norm or None for layer norm
    "batch (N, C)": ((16, 24), (0,)),
    "batch channels-first": ((16, 3, 49), (0, 2)),
    "layer": ((16, 40), None),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_errors_of_equal_rows_do_not_add_up(name, dtype, backend):
    shape, axes = CASES[name]
    rng = np.random.default_rng(3)
    x, dy = (
        np.tile(rng.standard_normal(shape).astype(dtype), (TIMES, *[1] * (len(shape) - 1)))
        for _ in range(2)
    )
    exact, gradient = x.astype(np.float64), dy.astype(np.float64)
    along = (1,) if axes is None else axes
    mean, var = exact.mean(along, keepdims=True), exact.var(along, keepdims=True)
    rstd = 1 / np.sqrt(var + 1e-5)
    terms = gradient * (exact - mean) * rstd
    over = (0,) if axes is None else axes
    if axes is None:
        found = nc.functional.layer_norm_backward(
            dy, x, mean.reshape(-1), rstd.reshape(-1), shape[-1], np.ones(shape[-1], np.float32)
        )
    else:
        found = nc.functional.batch_norm_backward(
            dy, x, mean.reshape(-1), rstd.reshape(-1), np.ones(shape[1], np.float32)
        )
    # README says 3e-6 of rows of halves.
    bound = 3e-6 if axes is None and x.itemsize == 2 else 1e-6
    for values, summands in ((found.dweight, terms), (found.dbias, gradient)):
        truth = summands.sum(over)
        scale = np.maximum(np.sqrt((summands**2).sum(over)), np.abs(truth))
        assert (np.abs(values - truth) / scale).max() <= bound
