"""The running statistics' kernel: the formula, its rounding, and what it must leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_cases import BACKENDS, Backend
from kernel_truth import TOLERANCE, error

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def _values(dtype: str, channels: int = 37, **given: Any) -> dict[str, Any]:
    random = np.random.default_rng(channels)
    return {
        "running_mean": random.uniform(-3, 3, channels).astype(dtype),
        "running_var": random.uniform(0.5, 2, channels).astype(dtype),
        "num_batches_tracked": np.array([6]),
        "mean": random.uniform(-3, 3, channels),
        "var": random.uniform(0.5, 2, channels),
        "momentum": 0.1,
        "count": 9,
        "skip_nonfinite": False,
        **given,
    }


@BACKENDS
@DTYPES
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1 / 3, 1.0])
def test_update_blends_mean_and_unbiased_variance(
    backend: Backend, dtype: str, momentum: float
) -> None:
    values = _values(dtype, momentum=momentum)
    blend = np.longdouble(momentum)
    mean = (1 - blend) * values["running_mean"] + blend * values["mean"]
    var = (1 - blend) * values["running_var"] + blend * values["var"] * 9 / 8
    terms = (1 - momentum) * abs(values["running_mean"]) + momentum * abs(values["mean"])
    backend.run("running", "update", values)
    tolerance = TOLERANCE["running"][dtype]
    assert error(values["running_mean"], mean, terms) <= tolerance
    assert error(values["running_var"], var, var) <= tolerance
    assert values["num_batches_tracked"] == 7


@BACKENDS
def test_update_counts_only_where_there_is_a_counter(backend: Backend) -> None:
    values = _values("float32", num_batches_tracked=None)
    before = values["running_mean"].copy()
    backend.run("running", "update", values)
    assert not np.array_equal(values["running_mean"], before)


@BACKENDS
@DTYPES
@pytest.mark.parametrize("skip", [False, True])
def test_update_skips_channels_with_nonfinite_statistics_if_asked(
    backend: Backend, dtype: str, skip: bool
) -> None:
    clean = _values(dtype)
    poisoned = _values(dtype, skip_nonfinite=skip)
    before = {name: poisoned[name].copy() for name in ("running_mean", "running_var")}
    poisoned["mean"][3], poisoned["var"][3] = np.nan, np.nan
    poisoned["mean"][5], poisoned["var"][5] = np.inf, np.nan
    poisoned["var"][8] = np.inf
    backend.run("running", "update", clean)
    backend.run("running", "update", poisoned)
    bad, good = [3, 5, 8], np.delete(np.arange(37), [3, 5, 8])
    for name, old in before.items():
        assert np.array_equal(poisoned[name][good], clean[name][good])
        if skip:
            assert np.array_equal(poisoned[name][bad], old[bad])
    if not skip:
        assert not np.isfinite(poisoned["running_var"][bad]).any()
        assert not np.isfinite(poisoned["running_mean"][[3, 5]]).any()
    assert poisoned["num_batches_tracked"] == 7


@BACKENDS
def test_update_does_not_write_its_inputs(backend: Backend) -> None:
    values = _values("float64")
    before = {name: values[name].copy() for name in ("mean", "var")}
    backend.run("running", "update", values)
    for name, old in before.items():
        assert np.array_equal(values[name], old)
