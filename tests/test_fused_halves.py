"""The backward of layers with an activation, in halves: nothing is rounded on the way."""

import numpy as np
import pytest
from conftest import runnable
from half_families import BFLOAT16, FLOAT16
from kernel_truth import half_unit
from numpy.random import default_rng

import normcore as nc

SHAPE = (4, 6, 5, 14)
LAYERS = {
    "batch": lambda **o: nc.BatchNorm2d(6, **o),
    "batch-last": lambda **o: nc.BatchNorm2d(14, axis=-1, **o),
    "ghost": lambda **o: nc.BatchNorm2d(6, virtual_batch_size=3, **o),
    "renorm": lambda **o: nc.BatchRenorm2d(6, r_max=1.5, d_max=0.5, **o),
    "layer": lambda **o: nc.LayerNorm((5, 14), **o),
    "layer-first": lambda **o: nc.LayerNorm(6, axis=1, **o),
    "rms": lambda **o: nc.RMSNorm(14, **o),
    "group": lambda **o: nc.GroupNorm(2, 6, **o),
    "instance": lambda **o: nc.InstanceNorm2d(6, affine=True, **o),
    "instance-last": lambda **o: nc.InstanceNorm2d(14, affine=True, axis=-1, **o),
}
MASKED = ("batch", "batch-last", "ghost", "renorm", "layer", "group", "instance")

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "silu", "gelu")
# Numba's backward is the same for all of them, and takes seconds to compile.
CASES = [
    (backend, activation)
    for backend in runnable()
    for activation in (("gelu",) if backend == "numba" else ACTIVATIONS)
]


def _layer(name, dtype, activation, evaluation):
    layer = LAYERS[name](dtype=dtype, activation=activation)
    random = default_rng(1)
    for key, values in layer.state_dict().items():
        if key in ("weight", "bias", "running_mean", "running_var"):
            getattr(layer, key)[...] = random.uniform(0.5, 1.5, values.shape).astype(np.float32)
    return layer.eval() if evaluation else layer


def _gradients(name, dtype, given, activation, mask, evaluation):
    x, dy, residual = given
    layer = _layer(name, dtype, activation, evaluation)
    layer(x, residual=residual, mask=mask)
    again = {"x": x, "residual": residual, "mask": mask} if evaluation else {}
    return layer, layer.backward_residual(dy, **again)


def _assert_rounded_once(found, exact, dtype):
    size = np.abs(found.astype(np.float64) - exact) - half_unit(exact, dtype)
    assert (size <= 1e-6 * np.maximum(1, np.abs(exact))).all()


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize(("backend", "activation"), CASES, indirect=["backend"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_rounded_once(backend, name, activation, dtype):
    random = default_rng(2)
    x, residual, dy = random.standard_normal((3, *SHAPE))
    given = [values.astype(dtype) for values in (2 * x + 1, dy + 0.25, residual)]
    mask = np.arange(SHAPE[2])[:, None] < random.integers(2, 6, (SHAPE[0], 1, SHAPE[3]))
    for masked in (False, True) if name in MASKED else (False,):
        kept = None
        if masked:
            kept = mask if not name.endswith("-last") else mask[..., 0][:, None]
            kept = kept if name != "batch-last" else np.broadcast_to(kept, (4, 6, 5))
            kept = kept if name != "layer" else np.broadcast_to(kept[:, None], SHAPE)
        for evaluation in (False, True) if name in ("batch", "renorm") else (False,):
            wide = [values.astype(np.float64) for values in given]
            options = (kept, evaluation)
            with nc.use_backend("numpy"):
                # Without an activation y is what it would be applied to.
                z = _layer(name, np.float64, None, evaluation)(wide[0], residual=wide[2], mask=kept)
                near = np.minimum(np.abs(z), np.abs(z - 6)) < 1e-4
                wide[1][near] = 0
                given[1][near] = 0
                _, exact = _gradients(name, np.float64, wide, activation, *options)
            layer, found = _gradients(name, np.float32, given, activation, *options)
            assert found.dx.dtype == found.dresidual.dtype == dtype
            _assert_rounded_once(found.dx, exact.dx, dtype)
            _assert_rounded_once(found.dresidual, exact.dresidual, dtype)
            summands = 2 * np.sqrt(z.size / found.dweight.size)
            assert np.abs(found.dweight - exact.dweight).max() <= 1e-6 * summands
            if layer.bias is not None:
                assert np.abs(found.dbias - exact.dbias).max() <= 1e-6 * summands
            again = given if evaluation else [None] * 3
            alone = layer.backward(
                given[1], again[0], residual=again[2], mask=kept if evaluation else None
            )
            assert np.array_equal(alone.dx, found.dx)
