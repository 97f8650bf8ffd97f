"""Stub of torch._dynamo: torch's optimizers import the compiler, for over a second, only to disable it.

Any attribute other than the two that they use loads the real module in its place.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

_MODULE_NAME = "torch._dynamo"


class _DynamoStub(ModuleType):
    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Do nothing: no code is compiled."""

    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """Return the function unchanged: no code is compiled."""
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # code that inspects all modules does not use this one
            raise AttributeError(name)
        if sys.modules.get(_MODULE_NAME) is self:
            del sys.modules[_MODULE_NAME], torch._dynamo
            importlib.import_module(_MODULE_NAME)
        return getattr(sys.modules[_MODULE_NAME], name)


def install() -> None:
    """Install the stub, unless the real module is loaded."""
    if _MODULE_NAME not in sys.modules:
        sys.modules[_MODULE_NAME] = torch._dynamo = _DynamoStub(_MODULE_NAME)
