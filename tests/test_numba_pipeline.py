"""Users' ``@njit`` functions call the kernels: by address, and the Numba kernels as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from readme import blocks

from normcore import reference

pytest.importorskip("normcore.capi", reason="built without a C compiler")


def test_the_readmes_pipeline_gives_the_references_values() -> None:
    names: dict[str, Any] = {}
    [example] = blocks("In a Cython or Numba pipeline")
    exec(compile(example, "README.md", "exec"), names)
    random = np.random.default_rng(0)
    x = (random.standard_normal((37, 129)) + 1e4).astype(np.float32)
    weight, bias = random.uniform(0.5, 1.5, 129), random.standard_normal(129)
    y, z = np.full((2, *x.shape), np.nan, np.float32)
    mean, rstd = np.empty((2, 37))
    assert names["normalize"](x, weight, bias, y, z, mean, rstd) == 0
    truth, moments = reference.batch_norm_forward(x, weight, bias, 1e-5, (1,))
    for found in (y, z):
        assert np.abs(found - truth).max() <= 1e-6 * np.abs(truth).max()
    np.testing.assert_allclose(mean, moments.mean.ravel(), rtol=1e-14)


CACHED = """
import numba, numpy as np
from normcore import capi
moments = capi.numba_function("nchw_moments")

@numba.njit(nogil=True, cache=True)
def pipeline(x):
    mean, m2 = np.empty(x.shape[:2]), np.empty(x.shape[:2])
    n, c, s = x.shape
    moments(1, mean.ctypes.data, m2.ctypes.data, x.ctypes.data, n, c, s, 1)
    return mean

x = np.arange(24.0).reshape(2, 3, 4)
assert np.array_equal(pipeline(x), x.mean(2))
print(sum(pipeline.stats.cache_hits.values()))
"""


def test_a_pipeline_that_calls_by_address_is_cached(tmp_path: Path) -> None:
    script = tmp_path / "pipeline.py"
    script.write_text(CACHED)
    command = [sys.executable, "-W", "error", str(script)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert [int(count) for count in hits] == [0, 1]
