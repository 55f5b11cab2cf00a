"""The univariate sets of NIST's Statistical Reference Datasets, through `moments`.

tests/nist/ holds the four observed sets, in NIST's order; the four NumAcc sets are formulas. Two
different questions are asked. Is the data NIST's? Its exact decimal mean, standard deviation and
lag-1 autocorrelation are the certified ones. Is the kernel right? Its mean and standard deviation
have 14 correct digits against exact arithmetic on the *stored* float64 values, which for NumAcc4
are off the decimal ones by up to 1e-9.

https://www.itl.nist.gov/div898/strd/univ/homepage.html
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import BACKENDS, Backend

FOLDER = Path(__file__).parent / "nist"
DIGITS = 14


@dataclass(frozen=True)
class Dataset:
    name: str
    count: int
    mean: str
    deviation: str
    autocorrelation: str

    def __str__(self) -> str:
        return self.name

    def decimals(self) -> list[Decimal]:
        if self.name not in NUM_ACC:
            return [Decimal(word) for word in (FOLDER / f"{self.name}.txt").read_text().split()]
        first, low, high = map(Decimal, NUM_ACC[self.name])
        return [first, *[low, high] * ((self.count - 1) // 2)]


NUM_ACC = {
    "numacc1": ("10000001", "10000003", "10000002"),
    "numacc2": ("1.2", "1.1", "1.3"),
    "numacc3": ("1000000.2", "1000000.1", "1000000.3"),
    "numacc4": ("10000000.2", "10000000.1", "10000000.3"),
}
# Certified values, as NIST prints them.
DATASETS = (
    Dataset("lottery", 218, "518.958715596330", "291.699727470969", "-0.120948622967393"),
    Dataset("lew", 200, "-177.435000000000", "277.332168044316", "-0.307304800605679"),
    Dataset("mavro", 50, "2.00185600000000", "0.000429123454003053", "0.937989183438248"),
    Dataset("michelso", 100, "299.852400000000", "0.0790105478190518", "0.535199668621283"),
    Dataset("numacc1", 3, "10000002", "1", "-0.5"),
    Dataset("numacc2", 1001, "1.2", "0.1", "-0.999"),
    Dataset("numacc3", 1001, "1000000.2", "0.1", "-0.999"),
    Dataset("numacc4", 1001, "10000000.2", "0.1", "-0.999"),
)
SETS = pytest.mark.parametrize("dataset", DATASETS, ids=str)


def _statistics(values: list[Fraction]) -> tuple[Decimal, Decimal, Decimal]:
    """Mean, standard deviation and lag-1 autocorrelation, to 40 digits."""
    mean = sum(values) / Fraction(len(values))
    squares = sum((value - mean) ** 2 for value in values)
    lagged = sum((a - mean) * (b - mean) for a, b in pairwise(values))
    with localcontext(prec=40):
        var, decimal_mean, correlation = (
            Decimal(f.numerator) / f.denominator
            for f in (squares / (len(values) - 1), mean, lagged / squares)
        )
        return decimal_mean, var.sqrt(), correlation


@cache
def _exact(dataset: Dataset) -> tuple[Decimal, Decimal, Decimal]:
    return _statistics([Fraction(float(value)) for value in dataset.decimals()])


def _has_digits(found: float, exact: Decimal, digits: int) -> bool:
    return abs(Decimal(found) - exact) <= abs(exact) * Decimal(10) ** -digits


@SETS
def test_data_has_the_certified_statistics(dataset: Dataset) -> None:
    values = dataset.decimals()
    assert len(values) == dataset.count
    found = _statistics([Fraction(value) for value in values])
    certified = (dataset.mean, dataset.deviation, dataset.autocorrelation)
    for value, text in zip(found, map(Decimal, certified), strict=True):
        # Half a unit of the last certified digit.
        assert abs(value - text) <= Decimal(5).scaleb(text.as_tuple().exponent - 1)


@SETS
@BACKENDS
@pytest.mark.parametrize("family", ["nchw", "nc"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("repeats", [1, 40])
def test_moments_have_14_digits(
    dataset: Dataset, backend: Backend, family: str, channels: int, repeats: int
) -> None:
    # The set is the last channel, and 40 copies of it, which have the same mean and population
    # variance, cross the kernels' units of summation.
    values = np.tile([float(value) for value in dataset.decimals()], repeats)
    x = np.stack([values[::-1] * -(index + 2) for index in range(channels - 1)] + [values])
    m = values.size
    sizes = {"n": 1, "c": channels, "s": m} if family == "nchw" else {"b": 1, "m": m, "c": channels}
    arguments = {
        **sizes,
        "x": np.ascontiguousarray(x if family == "nchw" else x.T).reshape(-1),
        "mean": np.full(channels, np.nan),
        "m2": np.full(channels, np.nan),
        "threads": 1,
    }
    backend.run(family, "moments", arguments)
    mean, deviation, _ = _exact(dataset)
    with localcontext(prec=40):
        found = (Decimal(arguments["m2"][-1]) / (repeats * (dataset.count - 1))).sqrt()
        assert _has_digits(arguments["mean"][-1], mean, DIGITS)
        assert abs(found - deviation) <= deviation * Decimal(10) ** -DIGITS
