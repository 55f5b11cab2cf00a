"""What a backward through an activation refuses, before anything is written, and what it takes."""

import numpy as np
import pytest

from normcore import functional

X = np.random.default_rng(0).standard_normal((4, 6, 5))
DY = X[::-1].copy()
FAMILIES = {
    "batch": (functional.batch_norm_forward, functional.batch_norm_backward, ()),
    "instance": (functional.instance_norm_forward, functional.instance_norm_backward, ()),
    "group": (functional.group_norm_forward, functional.group_norm_backward, (3,)),
    "layer": (functional.layer_norm_forward, functional.layer_norm_backward, (5,)),
}


def read_only():
    values = np.empty_like(X)
    values.flags.writeable = False
    return values


REFUSED = {
    "list": (lambda: X.tolist(), TypeError, "expected a NumPy array, got list"),
    "shape": (lambda: np.empty((4, 6, 4)), ValueError, r"expected x's shape .*, got \(4, 6, 4\)"),
    "dtype": (lambda: np.empty(X.shape, np.float32), TypeError, "expected dtype float64 .*float32"),
    "order": (lambda: np.empty(X.shape, ">f8"), TypeError, "expected dtype float64 .*>f8"),
    "read-only": (read_only, ValueError, "expected a writeable array"),
    "x": (lambda: X, ValueError, "expected memory of its own"),
    "dy": (lambda: DY, ValueError, "expected memory of its own"),
}


def arguments(name):
    """(backward, its positional arguments) of one normalization."""
    forward, backward, options = FAMILIES[name]
    _, mean, rstd = forward(X, *options, activation="silu")
    return backward, (DY, X, mean, rstd, *options)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("case", REFUSED)
def test_a_receiver_that_cannot_be_written(name, case, backend):
    make, error, message = REFUSED[case]
    backward, given = arguments(name)
    dx, before = np.full_like(X, 7), (X.copy(), DY.copy())
    with pytest.raises(error, match=f"^dresidual: {message}"):
        backward(*given, activation="silu", dresidual=make(), out=dx)
    assert (dx == 7).all()
    assert np.array_equal(X, before[0])
    assert np.array_equal(DY, before[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_other_arguments(name):
    backward, given = arguments(name)
    out = np.empty_like(X)
    with pytest.raises(ValueError, match=r"^dresidual: expected memory of its own"):
        backward(*given, activation="silu", dresidual=out, out=out)
    with pytest.raises(ValueError, match=r"^activation: expected one of .*'tanh'"):
        backward(*given, activation="tanh")
    with pytest.raises(ValueError, match=r"^residual: expected "):
        backward(*given, activation="silu", residual=np.ones(3))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_receiver_may_lie_as_it_likes(name, backend):
    backward, given = arguments(name)
    plain = np.empty_like(X)
    expected = backward(*given, activation="silu", dresidual=plain)
    assert np.isfinite(plain).all()
    strided = np.empty((*X.shape, 2))[..., 0]
    found = backward(*given, activation="silu", dresidual=strided)
    assert np.array_equal(strided, plain)
    for values, wanted in zip(found, expected, strict=True):
        assert np.array_equal(values, wanted)
