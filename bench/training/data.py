"""Images of digits to train on: scikit-learn's, or MNIST from a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.training import idx

Array = np.ndarray[Any, Any]
CLASSES = 10
TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Part:
    """Images (n, height, width), float32 of 0 to 1, and their labels (n,), int64."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rows(self) -> Array:
        """(n, height * width)."""
        return self.images.reshape(len(self), -1)

    def take(self, which: Array | slice) -> Part:
        return Part(self.images[which], self.labels[which])

    def of_classes(self, classes: Sequence[int]) -> Part:
        return self.take(np.isin(self.labels, classes))


@dataclass(frozen=True, slots=True)
class Data:
    """What to train on and what to test on."""

    name: str
    train: Part
    test: Part

    @property
    def side(self) -> int:
        """Height and width."""
        return int(self.train.images.shape[1])

    def of_classes(self, classes: Sequence[int]) -> Data:
        return Data(self.name, self.train.of_classes(classes), self.test.of_classes(classes))


@lru_cache(maxsize=1)
def load(mnist: Path | None = None, samples: int | None = None) -> Data:
    """The data, with at most so many samples to train on.

    scikit-learn's digits lie in the order of their writers; a shuffle of its own seed splits them,
    the same one for every seed of training.
    """
    if mnist is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        every = _part(digits.images[order], digits.target[order], 16)
        at = round(len(every) * TEST_SHARE)
        name, test, train = "digits", every.take(slice(at)), every.take(slice(at, None))
    else:
        name = "MNIST"
        train, test = (_part(*idx.pair(mnist, part), 255) for part in ("train", "t10k"))
    return Data(name, train.take(slice(samples)), test)


def _part(images: Array, labels: Array, most: int) -> Part:
    return Part((images / most).astype(np.float32), labels.astype(np.int64))


def shuffled(n: int, size: int, draw: np.random.Generator) -> Iterator[Array]:
    """Indices of mini-batches of one epoch; what does not fill a batch is left out."""
    order = draw.permutation(n)
    for at in range(0, n - size + 1, size):
        yield order[at : at + size]


def sorted_by_class(
    labels: Array, size: int, classes: int, draw: np.random.Generator
) -> Iterator[Array]:
    """Mini-batches of one epoch in which each holds only so many classes, in equal parts.

    Each class is dealt out in shares of size / classes, and neighbours in a shuffled row of shares
    make a batch; no two shares of a batch are of the same class if that can be.
    """
    share = size // classes
    shares: dict[int, list[Array]] = {}
    for label in np.unique(labels):
        order = draw.permutation(np.flatnonzero(labels == label))
        whole = order[: len(order) // share * share]
        shares[int(label)] = list(whole.reshape(-1, share))
    while sum(map(bool, shares.values())) >= classes:
        # The fullest first, so that no class is left over; ties by lot.
        lot = dict(zip(shares, draw.permutation(len(shares)), strict=True))
        fullest = sorted(shares, key=lambda label: (-len(shares[label]), lot[label]))
        yield np.concatenate([shares[label].pop() for label in fullest[:classes]])
