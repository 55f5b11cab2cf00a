"""The modules of normcore.torch, each beside its counterpart in torch.nn.

Whoever imports this is skipped where PyTorch is missing.
"""

from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is that of ml_dtypes")
nt = pytest.importorskip("normcore.torch")


class Pair(NamedTuple):
    """A module by its name, the same in both, and what it takes."""

    name: str
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    options: dict[str, Any] = {}  # noqa: RUF012  # read only

    def __str__(self):
        options = "".join(f"-{name}={value}" for name, value in self.options.items())
        return f"{self.name}-{self.shape}{options}"

    def make(self, dtype=torch.float32, seed=0, **options):
        """(PyTorch's, ours) with the same random parameters and statistics."""
        torch.manual_seed(seed)
        theirs = getattr(torch.nn, self.name)(*self.arguments, dtype=dtype, **self.options)
        for values in theirs.parameters():
            torch.nn.init.uniform_(values, 0.5, 1.5)
        ours = getattr(nt, self.name)(*self.arguments, dtype=dtype, **self.options, **options)
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours

    def input(self, dtype=torch.float32, seed=1):
        torch.manual_seed(seed)
        return (torch.randn(self.shape, dtype=torch.float64) * 2 + 1).to(dtype)


PAIRS = [
    Pair("BatchNorm1d", (6,), (16, 6)),
    Pair("BatchNorm1d", (6,), (7, 6, 5), {"momentum": None}),
    Pair("BatchNorm2d", (6,), (4, 6, 5, 3)),
    Pair("BatchNorm2d", (6,), (4, 6, 5, 3), {"affine": False, "eps": 1e-2, "momentum": 0.3}),
    Pair("BatchNorm2d", (6,), (4, 6, 5, 3), {"track_running_stats": False}),
    Pair("BatchNorm3d", (6,), (2, 6, 3, 4, 5)),
    Pair("InstanceNorm1d", (6,), (3, 6, 5), {"affine": True}),
    Pair("InstanceNorm2d", (6,), (6, 5, 3)),
    Pair("InstanceNorm2d", (6,), (4, 6, 5, 3), {"affine": True, "track_running_stats": True}),
    Pair("InstanceNorm3d", (6,), (2, 6, 3, 4, 5), {"track_running_stats": True}),
    Pair("GroupNorm", (3, 6), (4, 6, 5, 3)),
    Pair("GroupNorm", (2, 6), (4, 6), {"affine": False}),
    Pair("LayerNorm", (6,), (4, 5, 6)),
    Pair("LayerNorm", ((5, 6),), (4, 5, 6), {"bias": False}),
    Pair("LayerNorm", (6,), (4, 5, 6), {"elementwise_affine": False}),
    Pair("RMSNorm", (6,), (4, 5, 6)),
    Pair("RMSNorm", ((5, 6),), (4, 5, 6), {"eps": 1e-3, "elementwise_affine": False}),
]


def distance(found, expected):
    """The largest difference, relative to the largest value."""
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
