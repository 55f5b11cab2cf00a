"""normcore.weights: state dicts of whole models, Keras layers, safetensors and npz files.

The traps are those of converters (momentum, variance, eps, names, layouts, bfloat16): each test
compares with the real counterpart, and fails if the trap is stepped into.
"""

import subprocess
import sys

import numpy as np
import pytest

import normcore as nc
from normcore import weights


def layers():
    """Layers of each kind with random state, by the names that a model's modules have."""
    found = {
        "stem.bn": nc.BatchNorm2d(3),
        "block.0.norm1": nc.LayerNorm((4, 5)),
        "block.0.norm2": nc.RMSNorm(6, dtype=np.float64),
        "head": nc.GroupNorm(2, 4, affine=False),
        "style": nc.InstanceNorm1d(2, affine=True, track_running_stats=True),
    }
    rng = np.random.default_rng(0)
    for layer in found.values():
        state = layer.state_dict()
        for key, values in state.items():
            if values.dtype.kind == "f":
                state[key] = rng.uniform(0.5, 1.5, values.shape).astype(values.dtype)
        layer.load_state_dict(state)
    return found


def fresh():
    found = layers()
    for layer in found.values():
        layer.reset_parameters()
    return found


def assert_same_state(found, expected):
    found, expected = weights.state_dict(found), weights.state_dict(expected)
    assert list(found) == list(expected)
    for key, values in expected.items():
        assert found[key].dtype == values.dtype
        np.testing.assert_array_equal(found[key], values, key)


# State dicts.


def test_state_dicts_of_whole_models():
    ours, others = layers(), fresh()
    state = weights.state_dict(ours)
    assert [key for key in state if key.startswith("block")] == [
        *("block.0.norm1.weight", "block.0.norm1.bias", "block.0.norm2.weight"),
    ]
    given = state | {"fc.weight": np.eye(2), "step": 3}
    assert weights.load_state_dict(others, given) == ["fc.weight", "step"]
    assert_same_state(others, ours)
    state["stem.bn.weight"][:] = 7  # a copy
    assert_same_state(others, ours)
    # Trap: arrays of JAX are read-only. Layers copy them, and go on training.
    for values in state.values():
        values.flags.writeable = False
    weights.load_state_dict(others, state)
    others["stem.bn"](np.ones((2, 3, 4, 4), np.float32))
    np.testing.assert_array_equal(others["stem.bn"].weight, [7, 7, 7])
    alone = {"": nc.LayerNorm(2)}
    assert list(weights.state_dict(alone)) == ["weight", "bias"]
    assert weights.load_state_dict(alone, weights.state_dict(alone)) == []


def test_pytorch_models_both_ways():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.GroupNorm(2, 4)
    )
    theirs(torch.randn(3, 2, 5, 5))
    ours = {"1": nc.BatchNorm2d(4), "2": nc.GroupNorm(2, 4)}
    assert weights.load_state_dict(ours, theirs.state_dict()) == ["0.weight", "0.bias"]
    np.testing.assert_array_equal(ours["1"].running_var, theirs[1].running_var)
    ours["1"](np.random.default_rng(0).normal(size=(3, 4, 5, 5)).astype(np.float32))
    state = {key: torch.from_numpy(values) for key, values in weights.state_dict(ours).items()}
    result = theirs.load_state_dict(state, strict=False)
    assert result.missing_keys == ["0.weight", "0.bias"]
    np.testing.assert_array_equal(ours["1"].running_mean, theirs[1].running_mean)
    assert theirs[1].num_batches_tracked == 2
    # A parameter, unlike what is in a state dict, requires grad.
    with pytest.raises(TypeError, match=r"2: weight: got a tensor that requires grad.*detach"):
        weights.load_state_dict(
            ours, dict(theirs.named_parameters()) | state | {"2.weight": theirs[2].weight}
        )


def test_bfloat16_of_pytorch():
    """Trap: NumPy has no bfloat16, and PyTorch converts none."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.nn.LayerNorm(5, dtype=torch.bfloat16)
    torch.nn.init.normal_(theirs.weight)
    ours = nc.LayerNorm(5)
    ours.load_state_dict(theirs.state_dict())
    np.testing.assert_array_equal(ours.weight, theirs.weight.detach().float())
    assert ours.weight.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"stem.bn.bias": np.ones(4)}, ValueError, r"stem.bn: bias: expected shape \(3,\), got"),
        ({"stem.bn.bias": ["a"] * 3}, TypeError, "stem.bn: bias: expected floating-point numbers"),
        (
            {"stem.bn.bias": np.ones(3, int)},
            TypeError,
            "expected floating-point numbers, got dtype",
        ),
        ({"stem.bn.num_batches_tracked": 0.5}, TypeError, "expected integers, got dtype float64"),
        ({"stem.bn.bais": np.ones(3)}, ValueError, "stem.bn: state: .* unexpected: bais"),
        ({"head.weight": np.ones(4)}, ValueError, r"head: state: expected the keys \(none\)"),
        ({"stem.bn.bias": None}, ValueError, "stem.bn: state: .*missing: bias"),
        ({"stem.bn.bias": [[1], [2, 3]]}, TypeError, "stem.bn: bias: expected an array"),
    ],
)
def test_wrong_state_dicts_change_nothing(change, error, message):
    others, expected = fresh(), fresh()
    state = weights.state_dict(layers()) | change
    state = {key: values for key, values in state.items() if values is not None}
    with pytest.raises(error, match=message):
        weights.load_state_dict(others, state)
    assert_same_state(others, expected)


def test_what_is_no_layer():
    for function in (weights.state_dict, lambda ours: weights.load_state_dict(ours, {})):
        with pytest.raises(TypeError, match="fc: expected a layer of normcore, got ndarray"):
            function({"fc": np.eye(2)})


MISSING = """
import sys
import normcore, normcore.weights
assert not {"onnx", "keras", "safetensors", "torch", "ml_dtypes"} & set(sys.modules)
sys.modules[sys.argv[1]] = None  # as if it were not installed
exec(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("package", "code", "extra"),
    [
        ("onnx", "import normcore.onnx", "onnx"),
        ("keras", "normcore.weights.from_keras(None)", "keras"),
        ("safetensors", "normcore.weights.load_safetensors('w')", "safetensors"),
        ("safetensors", "normcore.weights.save_safetensors('w', {})", "safetensors"),
    ],
)
def test_a_missing_package_names_the_extra(package, code, extra):
    command = [sys.executable, "-c", MISSING, package, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = f"ImportError: {package} is not installed: pip install normcore[{extra}]"
    assert done.stderr.splitlines()[-1] == expected


# Files.


def files():
    yield "npz", weights.save_npz, weights.load_npz
    yield "safetensors", weights.save_safetensors, weights.load_safetensors


@pytest.fixture(params=files(), ids=lambda kind: kind[0])
def file(request, tmp_path):
    kind, save, load = request.param
    if kind == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    return tmp_path / f"weights.{kind}", save, load


def test_files_both_ways(file):
    path, save, load = file
    ours, others = layers(), fresh()
    save(path, weights.state_dict(ours))
    state = load(path)
    assert state["stem.bn.num_batches_tracked"].shape == ()
    assert weights.load_state_dict(others, state) == []
    assert_same_state(others, ours)


def test_files_take_arrays_as_they_lie(file):
    path, save, load = file
    x = np.arange(12.0).reshape(3, 4)
    given = {
        "file": x[:, ::-2],
        "fortran": np.asfortranarray(x),
        "swapped": x.astype(">f4"),
        "list": [1, 2],
        "empty": np.zeros((0, 3)),
        "flag": np.array(True),
    }
    save(path, given)
    found = load(path)
    assert set(found) == set(given)
    for key, values in given.items():
        np.testing.assert_array_equal(
            found[key], values, key, strict=key not in ("list", "swapped")
        )
    with pytest.raises(TypeError, match="a: expected numbers, got dtype object"):
        save(path, {"a": np.array([None])})
    with pytest.raises(TypeError, match="a: expected numbers, got dtype complex128"):
        save(path, {"a": 1j})
    with pytest.raises(TypeError, match="state: expected names of type str, got 3"):
        save(path, {3: x})


def test_bfloat16_in_files(file):
    """Trap: safetensors' NumPy interface may know no BF16, and npy files read it as raw bytes."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    path, save, load = file
    values = np.array([1.5, -2.25, 3e38], ml_dtypes.bfloat16)
    save(path, {"weight": values, "bias": values[::-1]})
    found = load(path)
    assert found["weight"].dtype == (np.float32 if path.suffix == ".npz" else ml_dtypes.bfloat16)
    ours = nc.LayerNorm(3)
    ours.load_state_dict(found)
    np.testing.assert_array_equal(ours.weight, values.astype(np.float32))
    np.testing.assert_array_equal(ours.bias, values[::-1].astype(np.float32))


def test_safetensors_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    theirs = torch.nn.RMSNorm(4, dtype=torch.bfloat16)
    torch.nn.init.normal_(theirs.weight)
    path = tmp_path / "model.safetensors"
    file.save_file({"norm.weight": theirs.weight.detach(), "fc.weight": torch.eye(3)}, path)
    found = weights.load_safetensors(path, ["norm.weight"])
    assert list(found) == ["norm.weight"]
    ours = {"norm": nc.RMSNorm(4)}
    assert weights.load_state_dict(ours, weights.load_safetensors(path)) == ["fc.weight"]
    np.testing.assert_array_equal(ours["norm"].weight, theirs.weight.detach().float())
    with pytest.raises(KeyError, match=r"expected a tensor 'norm\.bias', got"):
        weights.load_safetensors(path, ["norm.bias"])
    weights.save_safetensors(path, weights.state_dict(ours))
    assert torch.equal(file.load_file(path)["norm.weight"], theirs.weight.detach().float())


def test_npz_of_numpy(tmp_path):
    path = tmp_path / "w.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, weight=np.zeros(100_000), bias=np.ones(2, np.float16))
        found = weights.load_npz(path)
        np.testing.assert_array_equal(found["weight"], np.zeros(100_000))
        assert found["bias"].dtype == np.float16
    weights.save_npz(path, found)
    with np.load(path) as again:
        np.testing.assert_array_equal(again["bias"], [1, 1])
