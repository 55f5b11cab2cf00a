"""Folding: the folded map does what map and batch norm do one after the other."""

from itertools import product

import numpy as np
import pytest
from scipy.signal import correlate

import normcore.functional as F
from normcore import folding

EPS = 1e-3


def statistics(c, rng):
    """Running mean and variance, eps, weight, bias: the arguments of all functions."""
    mean, bias = rng.standard_normal((2, c)) * 2
    var, weight = rng.uniform(0.3, 3, (2, c))
    return mean, var, EPS, weight, bias


def normalized(x, bn):
    mean, var, eps, weight, bias = bn
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def convolved(x, w, b, groups=1, padding=0, mode="constant"):
    """Convolution with stride 1, by SciPy."""
    pads = [(0, 0)] * 2 + [(padding, padding)] * (x.ndim - 2)
    x = np.pad(x, pads, mode=mode)
    outputs, inputs = w.shape[0], w.shape[1]
    each = outputs // groups
    planes = [
        [
            sum(
                correlate(sample[o // each * inputs + i], w[o, i], "valid", "direct")
                for i in range(inputs)
            )
            for o in range(outputs)
        ]
        for sample in x
    ]
    return np.array(planes) + (0 if b is None else b.reshape(-1, *(1,) * (x.ndim - 2)))


def transposed(x, w, b, groups=1, stride=1, padding=0):
    """Transposed convolution: every input adds its kernel to the output."""
    n, c, *lengths = x.shape
    kernel, each = w.shape[2:], w.shape[1]
    full = [(size - 1) * stride + k for size, k in zip(lengths, kernel, strict=True)]
    y = np.zeros((n, groups * each, *full))
    for i in range(c):
        first = i // (c // groups) * each
        for at in product(*map(range, kernel)):
            to = tuple(
                slice(k, k + (size - 1) * stride + 1, stride)
                for k, size in zip(at, lengths, strict=True)
            )
            spread = w[(i, slice(None), *at)].reshape(each, *(1,) * len(kernel))
            y[(slice(None), slice(first, first + each), *to)] += x[:, i : i + 1] * spread
    inside = tuple(slice(padding, size - padding) for size in full)
    y = y[(slice(None), slice(None), *inside)]
    return y + (0 if b is None else b.reshape(-1, *(1,) * len(kernel)))


def assert_same(found, truth):
    np.testing.assert_allclose(found, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 1, 3)], ids=str)
def test_a_norm_behind_a_convolution(kernel, groups, given):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, *(5,) * len(kernel)))
    w = rng.standard_normal((8, 4 // groups, *kernel))
    b = rng.standard_normal(8) if given else None
    bn = statistics(8, rng)
    fused = folding.fuse_conv_bn_weights(w, b, *bn)
    truth = normalized(convolved(x, w, b, groups, 1), bn)
    assert_same(convolved(x, *fused, groups, 1), truth)


@pytest.mark.parametrize("given", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 1, 3)], ids=str)
def test_a_norm_before_a_convolution(kernel, groups, given):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, *(5,) * len(kernel)))
    w = rng.standard_normal((8, 4 // groups, *kernel))
    b = rng.standard_normal(8) if given else None
    bn = statistics(4, rng)
    fused = folding.fuse_bn_conv_weights(*bn, w, b, groups=groups)
    assert_same(convolved(x, *fused, groups), convolved(normalized(x, bn), w, b, groups))
    # Padding that repeats the input lets the norm pass.
    fused = folding.fuse_bn_conv_weights(
        *bn, w, b, groups=groups, padding=1, padding_mode="reflect"
    )
    truth = convolved(normalized(x, bn), w, b, groups, 1, "reflect")
    assert_same(convolved(x, *fused, groups, 1, "reflect"), truth)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(3,), (3, 2)], ids=str)
def test_a_norm_behind_a_transposed_convolution(kernel, stride, groups):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, *(5,) * len(kernel)))
    w = rng.standard_normal((4, 3, *kernel))
    b = rng.standard_normal(3 * groups)
    bn = statistics(3 * groups, rng)
    fused = folding.fuse_conv_bn_weights(w, b, *bn, True, groups=groups)
    truth = normalized(transposed(x, w, b, groups, stride), bn)
    assert_same(transposed(x, *fused, groups, stride), truth)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_norm_before_a_transposed_convolution_that_sees_whole_kernels(groups):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 6, 6))
    w = rng.standard_normal((4, 3, 3, 3))
    bn = statistics(4, rng)
    fused = folding.fuse_bn_conv_weights(*bn, w, None, True, groups=groups, padding=2)
    truth = transposed(normalized(x, bn), w, None, groups, padding=2)
    assert_same(transposed(x, *fused, groups, padding=2), truth)


def test_norms_around_a_linear_layer():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((7, 5)), rng.standard_normal((3, 5)), rng.standard_normal(3)
    after, before = statistics(3, rng), statistics(5, rng)
    for bias, added in ((b, b), (None, 0)):
        fused_w, fused_b = folding.fuse_linear_bn_weights(w, bias, *after)
        assert_same(x @ fused_w.T + fused_b, normalized(x @ w.T + added, after))
        fused_w, fused_b = folding.fuse_bn_linear_weights(*before, w, bias)
        assert_same(x @ fused_w.T + fused_b, normalized(x, before) @ w.T + added)


def test_a_norm_without_a_shift_passes_zeros():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 6)), rng.standard_normal((4, 3, 3))
    bn = (np.zeros(3), rng.uniform(0.5, 2, 3), EPS, rng.uniform(0.5, 2, 3), None)
    fused = folding.fuse_bn_conv_weights(*bn, w, None, padding=1)
    assert_same(convolved(x, *fused, 1, 1), convolved(normalized(x, bn), w, None, 1, 1))


def test_it_is_computed_in_float64_and_rounded_once():
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((4, 3, 3)), rng.standard_normal(4)
    bn = statistics(4, rng)
    w32, b16 = w.astype(np.float32), b.astype(np.float16)
    found = folding.fuse_conv_bn_weights(w32, b16, *bn)
    wide = folding.fuse_conv_bn_weights(w32.astype(float), b16.astype(float), *bn)
    assert [values.dtype for values in found] == [np.float32, np.float16]
    assert np.array_equal(found[0], wide[0].astype(np.float32))
    assert np.array_equal(found[1], wide[1].astype(np.float16))
    assert folding.fuse_conv_bn_weights(w32, None, *bn)[1].dtype == np.float32


W, ONES = np.ones((4, 2, 3), np.float32), np.ones(4)
BN4, BN2 = (np.ones(4), ONES, EPS, None, None), (np.ones(2), np.ones(2), EPS, None, None)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: folding.fuse_conv_bn_weights(W, None, *BN2), ValueError, r"bn_rm: expected shape"),
        (lambda: folding.fuse_conv_bn_weights(W[0], None, *BN4), ValueError, "conv_w: expected 3"),
        (lambda: folding.fuse_conv_bn_weights(W, ONES[:3], *BN4), ValueError, "conv_b: expected"),
        (lambda: folding.fuse_conv_bn_weights([[[1]]], None, *BN4), TypeError, "conv_w: expected"),
        (
            lambda: folding.fuse_conv_bn_weights(W, None, None, *BN4[1:]),
            ValueError,
            "bn_rm: expected an array",
        ),
        (
            lambda: folding.fuse_conv_bn_weights(W, None, ONES, ONES, 0.0, None, None),
            ValueError,
            "bn_eps: expected a positive",
        ),
        (
            lambda: folding.fuse_conv_bn_weights(W, None, *BN4, True, groups=3),
            ValueError,
            "groups: expected a divisor",
        ),
        (lambda: folding.fuse_linear_bn_weights(W, None, *BN4), ValueError, "linear_w: expected 2"),
        (
            lambda: folding.fuse_bn_conv_weights(*BN2, W, None, padding=1),
            ValueError,
            "padding: expected none for a batch norm before the convolution",
        ),
        (
            lambda: folding.fuse_bn_conv_weights(*BN2, W, None, padding="same"),
            ValueError,
            "a zero that pads the normalized input is not 0",
        ),
        (
            lambda: folding.fuse_bn_conv_weights(*BN2, W, None, padding="half"),
            ValueError,
            "padding: expected numbers, 'valid' or 'same'",
        ),
        (
            lambda: folding.fuse_bn_conv_weights(*BN2, W, None, padding=(1, 1)),
            ValueError,
            "padding: expected 1 numbers",
        ),
        (
            lambda: folding.fuse_bn_conv_weights(*BN2, W, None, padding=1.5),
            TypeError,
            "padding: expected an int",
        ),
        (
            lambda: folding.fuse_bn_conv_weights(*BN2, W, None, padding=-1),
            ValueError,
            "padding: expected no negative",
        ),
        (
            lambda: folding.fuse_bn_conv_weights(*BN2, W, None, padding_mode="mirror"),
            ValueError,
            "padding_mode: expected one of",
        ),
        (
            lambda: folding.fuse_bn_conv_weights(*BN4, W, None, True, stride=2),
            ValueError,
            "other outputs see only a part of the kernel",
        ),
        (
            lambda: folding.fuse_bn_conv_weights(*BN4, W, None, True, padding=2, output_padding=1),
            ValueError,
            "no output_padding",
        ),
    ],
)
def test_what_cannot_be_folded_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_it_is_pytorchs_fusion():
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    from torch.nn.utils import fusion

    rng = np.random.default_rng(0)
    for shape, transpose in (((4, 3, 3, 2), False), ((3, 4, 3, 2), True)):
        w, b, bn = rng.standard_normal(shape), rng.standard_normal(4), statistics(4, rng)
        given = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in (w, b, *bn)]
        truth = fusion.fuse_conv_bn_weights(*given, transpose)
        for mine, theirs in zip(
            folding.fuse_conv_bn_weights(w, b, *bn, transpose), truth, strict=True
        ):
            assert_same(mine, theirs.detach().numpy())
    w, b, bn = rng.standard_normal((4, 3)), rng.standard_normal(4), statistics(4, rng)
    given = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in (w, b, *bn)]
    truth = fusion.fuse_linear_bn_weights(*given)
    for mine, theirs in zip(folding.fuse_linear_bn_weights(w, b, *bn), truth, strict=True):
        assert_same(mine, theirs.detach().numpy())


@pytest.mark.parametrize("first", ["map", "norm"])
@pytest.mark.parametrize("transpose", [False, True], ids=["conv", "transposed"])
def test_it_folds_pytorchs_modules(first, transpose):
    torch = pytest.importorskip("torch", reason="the modules are PyTorch's")
    torch.manual_seed(0)
    module = torch.nn.ConvTranspose2d if transpose else torch.nn.Conv2d
    options = {"groups": 2, "dilation": 2}
    if first == "norm" and transpose:
        options["padding"] = 4
    elif first == "map":
        options |= {"stride": 2, "padding": 1}
    conv = module(4, 6, 3, **options).double().eval()
    bn = torch.nn.BatchNorm2d(4 if first == "norm" else 6).double().eval()
    for values in (bn.running_mean, bn.weight.data, bn.bias.data):
        values.normal_()
    bn.running_var.uniform_(0.5, 2)
    model = torch.nn.Sequential(*((bn, conv) if first == "norm" else (conv, bn)))
    x = torch.randn(2, 4, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        truth = model(x).numpy()
        w, b, mean, var, weight, bias = (
            values.detach().numpy().copy()
            for values in (
                *(conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias),
            )
        )
        norm = (mean, var, bn.eps, weight, bias)
        if first == "norm":
            options.setdefault("padding", 0)
            fused = folding.fuse_bn_conv_weights(*norm, w, b, transpose, **options)
        else:
            fused = folding.fuse_conv_bn_weights(w, b, *norm, transpose, groups=2)
        conv.weight.copy_(torch.from_numpy(fused[0]))
        conv.bias.copy_(torch.from_numpy(fused[1]))
        assert_same(conv(x).numpy(), truth)
