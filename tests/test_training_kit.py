"""The NumPy kit of ``python -m bench training``: gradients, loss, optimizer."""

from copy import deepcopy

import numpy as np
import pytest

import normcore as nc
from bench.training import kit
from bench.training.data import load, shuffled, sorted_by_class
from bench.training.perceptron import NORMS, Shape, network, perceptron
from bench.training.train import Course, train


def drawn(*shape, seed=0):
    return np.random.default_rng([*shape, seed]).normal(size=shape)


def slope(function, values, direction, step=1e-6):
    """The derivative of a function of an array, in a direction, by central differences."""
    start = values.copy()
    ends = []
    for sign in (1, -1):
        values[...] = start + sign * step * direction
        ends.append(function())
    values[...] = start
    return (ends[0] - ends[1]) / (2 * step)


LAYERS = {
    "linear": lambda: kit.Linear(32, 24, np.random.default_rng(0), dtype=np.float64),
    "relu": kit.ReLU,
    "dropout": lambda: kit.Dropout(0.4, np.random.default_rng(0)),
    **{name: lambda make=make: make(32, np.float64) for name, make in NORMS.items()},
    "renorm": lambda: kit.Norm(nc.BatchRenorm1d(32, dtype=np.float64, r_max=1.5, d_max=0.5)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_layers(name, training):
    start = LAYERS[name]()
    for parameter in start.parameters:
        parameter.value += 0.3 * drawn(*parameter.value.shape)
    x = drawn(20, 32)
    dy = drawn(*deepcopy(start).forward(x, training).shape, seed=1)
    layer = deepcopy(start)
    if name == "renorm" and training:
        # r and d are constants to the gradient, as the paper has it: off the limits they are not.
        start.layer.r_max, start.layer.d_max = 1.0, 0.0
        layer = deepcopy(start)
    layer.forward(x, training)
    dx = layer.backward(dy)

    def loss():
        # A copy has the same draws and the same running statistics each time.
        probe = deepcopy(start)
        return float((probe.forward(x, training) * dy).sum())

    direction = drawn(20, 32, seed=2)
    assert slope(loss, x, direction) == pytest.approx(float((dx * direction).sum()), rel=1e-6)
    for own, found in zip(start.parameters, layer.parameters, strict=True):
        direction = drawn(*own.value.shape, seed=2)
        expected = float((found.grad * direction).sum())
        assert slope(loss, own.value, direction) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_gradient_of_the_loss():
    logits, labels = 3 * drawn(7, 10), np.arange(7)
    found = kit.cross_entropy(logits, labels)
    powers = np.exp(logits)
    chosen = powers[np.arange(7), labels] / powers.sum(1)
    assert found.value == pytest.approx(-np.log(chosen).mean(), rel=1e-12)
    direction = drawn(7, 10, seed=2)
    expected = float((found.gradient * direction).sum())
    got = slope(lambda: kit.cross_entropy(logits, labels).value, logits, direction)
    assert got == pytest.approx(expected, rel=1e-7)


def test_large_logits_do_not_overflow():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    assert kit.cross_entropy(logits, np.array([0, 0])).value == pytest.approx(5e3)


@pytest.mark.parametrize("before", [True, False])
def test_gradient_of_a_network(before):
    shape = Shape("batch", before=before, dropout=0.2, widths=(16, 8))
    start = network(shape, 12, 10, np.random.default_rng(0), np.float64)
    x, labels = drawn(9, 12), np.arange(9)
    net = deepcopy(start)
    net.backward(kit.cross_entropy(net.forward(x, True), labels).gradient)

    def loss():
        return kit.cross_entropy(deepcopy(start).forward(x, True), labels).value

    for own, found in zip(start.parameters, net.parameters, strict=True):
        direction = drawn(*own.value.shape, seed=2)
        expected = float((found.grad * direction).sum())
        assert slope(loss, own.value, direction) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_dropout_keeps_the_mean_and_leaves_evaluation_alone():
    layer, x = kit.Dropout(0.25, np.random.default_rng(0)), np.ones((200, 200), np.float32)
    y = layer.forward(x, True)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    assert y.mean() == pytest.approx(1, abs=0.02)
    assert (layer.forward(x, False) == x).all()


def test_sgd_with_momentum():
    parameter = kit.Parameter(np.array([1.0, 2.0]), np.array([0.5, -1.0]))
    optimizer = kit.SGD([parameter], momentum=0.9)
    optimizer.step(0.1)
    np.testing.assert_allclose(parameter.value, [0.95, 2.1])
    optimizer.step(0.1)  # velocity 0.9 * 0.5 + 0.5
    np.testing.assert_allclose(parameter.value, [0.855, 2.29])


def test_decay():
    assert [kit.decayed(0.1, 0.5, epoch) for epoch in range(3)] == [0.1, 0.05, 0.025]
    still = train(perceptron(Shape(), 8, 0), load(), Course(2, 0.1, decay=0.0), 0)
    [first, second] = still.train_loss
    assert first == second  # the second epoch has a rate of 0


def test_frozen_parameters_do_not_move():
    model = perceptron(Shape("batch"), 8, 0)
    norms = [layer.layer for layer in model.net.layers if isinstance(layer, kit.Norm)]
    for norm in norms:
        norm.freeze(affine=True)
    before = [norm.state_dict() for norm in norms]
    train(model, load(), Course(1), 0)
    for norm, state in zip(norms, before, strict=True):
        for name, values in norm.state_dict().items():
            np.testing.assert_array_equal(values, state[name])


def test_any_number_of_threads_gives_the_same_bits():
    def weights(threads):
        model = perceptron(Shape("batch"), 8, 0)
        with nc.num_threads(threads):
            train(model, load(), Course(2, batch=512), 0)  # arrays beyond the serial threshold
        return [parameter.value for parameter in model.net.parameters]

    for one, two in zip(weights(1), weights(2), strict=True):
        np.testing.assert_array_equal(one, two)


# Mini-batches


def test_shuffled_batches_are_a_partition():
    batches = list(shuffled(10, 3, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert len(np.unique(batches)) == 9


@pytest.mark.parametrize("classes", [1, 2, 5, 10])
def test_sorted_batches_hold_few_classes(classes):
    labels = load().train.labels
    batches = list(sorted_by_class(labels, 40, classes, np.random.default_rng(0)))
    for batch in batches:
        _, counts = np.unique(labels[batch], return_counts=True)
        assert counts.tolist() == [40 // classes] * classes
    used = np.concatenate(batches)
    assert len(np.unique(used)) == len(used) > 0.7 * len(labels)


def test_digits_are_split_once():
    data = load()
    assert data.train.images.shape == (1438, 8, 8)
    assert data.test.images.shape == (359, 8, 8)
    assert data.train.images.max() == 1
    assert np.bincount(data.test.labels).min() > 20
    few = data.of_classes((3, 4))
    assert set(few.train.labels) == set(few.test.labels) == {3, 4}
