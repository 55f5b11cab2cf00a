"""Normalization layers on NumPy arrays at the memory limit of the CPU.

`BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d`, `LayerNorm`, `RMSNorm`, `GroupNorm`, `InstanceNorm1d`,
`InstanceNorm2d` and `InstanceNorm3d` are layers with PyTorch's names and state, `BatchRenorm1d`,
`BatchRenorm2d` and `BatchRenorm3d` batch norm's renormalizing kin; `functional` has the same
without state. `set_backend` and `set_num_threads` choose what runs; `show_config` prints it.

Settings are here at once; layers and functions are imported when they are first asked for, so that
`import normcore` costs what it must: 11 ms after NumPy, where all of it takes 32.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .backend import (
    get_backend,
    get_num_threads,
    num_threads,
    set_backend,
    set_num_threads,
    show_config,
    use_backend,
    warmup,
)

if TYPE_CHECKING:
    from . import functional
    from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
    from .batchrenorm import (
        PAPER_D_MAX,
        PAPER_R_MAX,
        BatchRenorm1d,
        BatchRenorm2d,
        BatchRenorm3d,
        LinearSchedule,
    )
    from .groupnorm import GroupNorm
    from .inference import compile_inference
    from .instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
    from .layernorm import LayerNorm, RMSNorm
    from .stats import ChannelStats, update_bn

__version__ = "0.1.0"

__all__ = [
    "PAPER_D_MAX",
    "PAPER_R_MAX",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "ChannelStats",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LinearSchedule",
    "RMSNorm",
    "__version__",
    "compile_inference",
    "functional",
    "get_backend",
    "get_num_threads",
    "num_threads",
    "set_backend",
    "set_num_threads",
    "show_config",
    "update_bn",
    "use_backend",
    "warmup",
]

_MODULES = {
    "batchnorm": ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
    "batchrenorm": (
        *("PAPER_D_MAX", "PAPER_R_MAX", "LinearSchedule"),
        *("BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d"),
    ),
    "groupnorm": ("GroupNorm",),
    "inference": ("compile_inference",),
    "instancenorm": ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
    "layernorm": ("LayerNorm", "RMSNorm"),
    "stats": ("ChannelStats", "update_bn"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module(".functional", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
