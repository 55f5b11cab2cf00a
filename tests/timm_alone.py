"""timm without torchvision, of which it only needs names: no model here uses any of it.

timm imports torchvision unconditionally, and there is no torchvision for every build of PyTorch.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import pytest


class _Name(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type.__new__(_Name, name, (), {})


class _Torchvision(MetaPathFinder, Loader):
    """Any module of torchvision, in which every name is an empty class."""

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] == "torchvision":
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: getattr(_Name("torchvision", (), {}), name)
        return module

    def exec_module(self, module):
        pass


def timm():
    """The module; the test is skipped without it."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    if find_spec("torchvision") is not None:
        import timm

        return timm
    finder = _Torchvision()
    sys.meta_path.append(finder)
    try:
        import timm
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    return timm
