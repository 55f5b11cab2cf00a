"""The BatchNormalization cases of ONNX's backend tests, whose data ship in onnx's wheel.

ONNX's momentum is the weight of the old running statistics, and its running variance is the
population variance of the batch; normcore's (PyTorch's) are the complement and unbiased.
"""

from pathlib import Path

import numpy as np
import pytest

import normcore as nc

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
numpy_helper = pytest.importorskip("onnx.numpy_helper")

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
NODE = ("test_batchnorm_example", "test_batchnorm_epsilon")
CONVERTED = {
    "test_BatchNorm1d_3d_input_eval": nc.BatchNorm1d,
    "test_BatchNorm2d_eval": nc.BatchNorm2d,
    "test_BatchNorm2d_momentum_eval": nc.BatchNorm2d,
    "test_BatchNorm3d_eval": nc.BatchNorm3d,
    "test_BatchNorm3d_momentum_eval": nc.BatchNorm3d,
}


def read(folder):
    """The model's only node, its inputs by the node's own order, and its outputs."""
    model = onnx.load(folder / "model.onnx")
    [node] = model.graph.node
    assert node.op_type == "BatchNormalization"

    def arrays(kind):
        files = sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb"))
        return [numpy_helper.to_array(onnx.load_tensor(file)) for file in files]

    given = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    free = [item.name for item in model.graph.input if item.name not in given]
    given |= dict(zip(free, arrays("input"), strict=True))
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return [given[name] for name in node.input], attributes, arrays("output")


@pytest.mark.parametrize("name", NODE)
def test_inference(backend, name):
    (x, scale, bias, mean, var), attributes, [expected] = read(DATA / "node" / name)
    y = nc.functional.batch_norm(x, mean, var, scale, bias, eps=attributes.get("epsilon", 1e-5))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NODE)
def test_training(backend, name):
    inputs, attributes, outputs = read(DATA / "node" / f"{name}_training_mode")
    x, scale, bias, old_mean, old_var = inputs
    assert attributes["training_mode"] == 1
    eps, keep = attributes.get("epsilon", 1e-5), attributes.get("momentum", 0.9)
    running_mean, unbiased_var = old_mean.copy(), old_var.copy()
    y, _, rstd = nc.functional.batch_norm_forward(
        x, scale, bias, running_mean, unbiased_var, 1 - keep, eps
    )
    running_var = keep * old_var + (1 - keep) * (1 / rstd**2 - eps)
    for found, expected in zip((y, running_mean, running_var), outputs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # What normcore keeps itself is the unbiased variance.
    count = x.size // scale.size
    np.testing.assert_allclose(
        unbiased_var, keep * old_var + (1 - keep) * (1 / rstd**2 - eps) * count / (count - 1), 1e-5
    )


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_from_pytorch(backend, name):
    (x, *state), attributes, [expected] = read(DATA / "pytorch-converted" / name)
    bn = CONVERTED[name](
        x.shape[1], eps=attributes["epsilon"], momentum=1 - attributes.get("momentum", 0.9)
    )
    keys = ("weight", "bias", "running_mean", "running_var")
    found = bn.load_state_dict(dict(zip(keys, state, strict=True)), strict=False)
    assert found == (["num_batches_tracked"], [])
    np.testing.assert_allclose(bn.eval()(x), expected, rtol=1e-5, atol=1e-6)
