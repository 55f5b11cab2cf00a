"""What tests/test_batch_renorm.py runs with Keras on PyTorch, which is one choice per process."""

import sys

import keras
import numpy as np
import torch
from arrays import assert_close, case

import normcore as nc


def main(backend):
    """Batch renorm against Keras's: forward, backward, running statistics."""
    nc.set_backend(backend)
    options = {"axis": 1, "epsilon": 1e-3, "momentum": 0.9, "renorm_momentum": 0.9}
    clips = {"rmax": 1.3, "rmin": 1 / 1.3, "dmax": 0.4}  # without rmin it would be 0
    theirs = keras.layers.BatchNormalization(**options, renorm=True, renorm_clipping=clips)
    theirs.build((None, 6, 5, 3))
    theirs.renorm_stddev.assign(np.linspace(1, 3, 6))  # that of x is 2
    ours = nc.BatchRenorm2d(6, eps=1e-3, momentum=1 - 0.9, r_max=1.3, d_max=0.4)
    clipped = []
    for seed in range(4):
        t = case((4, 6, 5, 3), offset=0.5, seed=seed)
        theirs.gamma.assign(t.weight)
        theirs.beta.assign(t.bias)
        ours.weight[...], ours.bias[...] = t.weight, t.bias
        # Keras averages standard deviations, and not variances.
        ours.running_mean[...] = keras.ops.convert_to_numpy(theirs.renorm_mean)
        deviation = keras.ops.convert_to_numpy(theirs.renorm_stddev).astype(np.float64)
        ours.running_var[...] = deviation**2 - 1e-3
        device = theirs.gamma.value.device
        x = torch.tensor(t.x, device=device, requires_grad=True)
        with torch.enable_grad():
            expected = theirs(x, training=True)
        expected.backward(torch.tensor(t.dy, device=device))
        y = ours(t.x)
        assert_close(y, expected.detach().cpu().numpy(), 1e-5)
        found = ours.backward(t.dy)
        truth = (x.grad, theirs.gamma.value.grad, theirs.beta.value.grad)
        for values, wanted in zip(found, truth, strict=True):
            assert_close(values, wanted.cpu().numpy(), 2e-5, 8)
        theirs.gamma.value.grad = theirs.beta.value.grad = None
        running_mean = keras.ops.convert_to_numpy(theirs.renorm_mean)
        np.testing.assert_allclose(ours.running_mean, running_mean, rtol=1e-5, atol=1e-6)
        clipped.append((ours.r == 1.3) | (ours.r == 1 / 1.3))
    assert any(c.any() for c in clipped)
    assert not all(c.all() for c in clipped)


if __name__ == "__main__":
    main(sys.argv[1])
