"""The normalization cases of ONNX's backend tests, whose data ship in onnx's wheel.

Of each operator all node tests are run, without those that expand it into other operators. ONNX's
momentum is the weight of the old running statistics, and its running variance is the
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


def cases(start):
    """Names of the node tests of an operator."""
    folders = (DATA / "node").glob(f"test_{start}*")
    return sorted(folder.name for folder in folders if "expanded" not in folder.name)


LAYER, RMS = cases("layer_normalization"), cases("rms_normalization")
GROUP, INSTANCE, MVN = cases("group_normalization"), cases("instancenorm"), cases("mvn")


def read(folder, operator="BatchNormalization"):
    """The inputs of the model's only node in its own order, its attributes, and its outputs."""
    model = onnx.load(folder / "model.onnx")
    [node] = model.graph.node
    assert node.op_type == operator

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


def test_no_case_is_missing():
    assert [len(found) for found in (LAYER, GROUP, INSTANCE, RMS, MVN)] == [19, 2, 2, 19, 1]


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYER)
def test_layer_normalization(backend, name):
    (x, *parameters), attributes, (expected, mean, rstd) = read(
        DATA / "node" / name, "LayerNormalization"
    )
    axis = attributes.get("axis", -1)
    shape = x.shape[axis:]
    y, *statistics = nc.functional.layer_norm_forward(
        x, shape, *parameters, attributes.get("epsilon", 1e-5)
    )
    assert_equal(y, expected)
    # ONNX keeps the normalized axes, and stores float32.
    for found, saved in zip(statistics, (mean, rstd), strict=True):
        assert_equal(found.reshape(saved.shape).astype(saved.dtype), saved)
    ln = nc.LayerNorm(shape, attributes.get("epsilon", 1e-5)).eval()
    ln.load_state_dict(dict(zip(("weight", "bias"), parameters, strict=True)))
    np.testing.assert_array_equal(ln(x), y)


@pytest.mark.parametrize("name", RMS)
def test_rms_normalization(backend, name):
    (x, scale), attributes, [expected] = read(DATA / "node" / name, "RMSNormalization")
    shape, eps = x.shape[attributes.get("axis", -1) :], attributes.get("epsilon", 1e-5)
    y = nc.functional.rms_norm(x, shape, scale, eps)
    assert_equal(y, expected)
    rms = nc.RMSNorm(shape, eps).eval()
    rms.load_state_dict({"weight": scale})
    np.testing.assert_array_equal(rms(x), y)


@pytest.mark.parametrize("name", GROUP)
def test_group_normalization(backend, name):
    inputs, attributes, [expected] = read(DATA / "node" / name, "GroupNormalization")
    x, scale, bias = inputs
    groups, eps = attributes["num_groups"], attributes.get("epsilon", 1e-5)
    assert_equal(nc.functional.group_norm(x, groups, scale, bias, eps), expected)
    last = nc.functional.group_norm(x.transpose(0, 2, 3, 1), groups, scale, bias, eps, axis=-1)
    assert_equal(last.transpose(0, 3, 1, 2), expected)


@pytest.mark.parametrize("name", INSTANCE)
def test_instance_normalization(backend, name):
    (x, scale, bias), attributes, [expected] = read(DATA / "node" / name, "InstanceNormalization")
    eps = attributes.get("epsilon", 1e-5)
    assert_equal(nc.functional.instance_norm(x, None, None, scale, bias, eps=eps), expected)
    norm = {3: nc.InstanceNorm1d, 4: nc.InstanceNorm2d}[x.ndim](x.shape[1], eps, affine=True)
    norm.load_state_dict({"weight": scale, "bias": bias})
    assert_equal(norm(x), expected)


@pytest.mark.parametrize("name", MVN)
def test_mean_variance_normalization(backend, name):
    # y = (x - mean) / (std + 1e-9) for each channel: the eps is beside the standard deviation. So
    # the statistics come from a forward with next to no eps, and the evaluation form of batch norm
    # takes the square of what is to be divided by as a variance.
    [x], attributes, [expected] = read(DATA / "node" / name, "MeanVarianceNormalization")
    assert tuple(attributes.get("axes", (0, 2, 3))) == (0, 2, 3)
    tiny = 1e-300
    _, mean, rstd = nc.functional.batch_norm_forward(x, eps=tiny)
    y = nc.functional.batch_norm(x, mean, (1 / rstd + 1e-9) ** 2, eps=tiny)
    assert_equal(y, expected)
