"""Normalizations as NumPy's generalized ufuncs.

They broadcast over leading axes, take ``out=`` and ``axes=``, and are what dask arrays,
``xarray.apply_ufunc`` and everything else with ``__array_ufunc__`` know how to call.
Weight, bias and eps have no defaults, because a ufunc has none.

===============  ===========================  ====================================================
ufunc            signature                    computes, from x, weight, bias, eps
===============  ===========================  ====================================================
layer_norm       ``(m),(m),(m),()->(m)``      (x - mean) / sqrt(var + eps) * weight + bias
rms_norm         ``(m),(m),()->(m)``          x / sqrt(mean(x^2) + eps) * weight; no bias
instance_norm1d  ``(l),(),(),()->(l)``        as layer_norm, with one weight and bias per row: of x
instance_norm2d  ``(h,w),(),(),()->(h,w)``    (N, C, L) and weight (C,), they are the channel's
instance_norm3d  ``(d,h,w),(),(),()->...``    and 1 and 0 are none
===============  ===========================  ====================================================

x is float16, float32 or float64 and y is like it; weight and bias are float32 or float64;
statistics are float64. Other dtypes are cast by NumPy's rules for ufuncs (so small integers
become float16). bfloat16 has no loop: `normcore.functional` takes it.

Rows that lie apart in memory, or whose elements do, are copied block by block. NaN and infinity
come out without a warning, and eps is not looked at. Loops run without the GIL, on as many threads
as `normcore.set_num_threads` says; let them be 1 where dask brings threads of its own.

Examples
--------
>>> import numpy as np
>>> from normcore import gufuncs
>>> x = np.arange(12.0).reshape(2, 2, 3)
>>> gufuncs.layer_norm(x, np.ones(3), np.zeros(3), 1e-5).round(3)
array([[[-1.225,  0.   ,  1.225],
        [-1.225,  0.   ,  1.225]],
<BLANKLINE>
       [[-1.225,  0.   ,  1.225],
        [-1.225,  0.   ,  1.225]]])
>>> gufuncs.rms_norm([3.0, 4.0], [1.0, 1.0], 0.0).round(3)
array([0.849, 1.131])
>>> weight = np.array([1.0, 10.0])
>>> gufuncs.instance_norm1d(x, weight, 0, 1e-5)[0].round(2)
array([[ -1.22,   0.  ,   1.22],
       [-12.25,   0.  ,  12.25]])
"""

from __future__ import annotations

import numpy as np

try:
    from .kernels import gufuncs_cy
except ImportError as error:
    raise ImportError(
        "normcore.gufuncs: the Cython backend was not built here; install normcore with a C "
        f"compiler ({error})"
    ) from error

__all__ = ["instance_norm1d", "instance_norm2d", "instance_norm3d", "layer_norm", "rms_norm"]

layer_norm: np.ufunc = gufuncs_cy.layer_norm
rms_norm: np.ufunc = gufuncs_cy.rms_norm
instance_norm1d: np.ufunc = gufuncs_cy.instance_norm1d
instance_norm2d: np.ufunc = gufuncs_cy.instance_norm2d
instance_norm3d: np.ufunc = gufuncs_cy.instance_norm3d
