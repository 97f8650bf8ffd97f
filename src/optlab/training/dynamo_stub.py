"""torch's optimizers without torch._dynamo: they import the compiler, for over a second, to tell it to stay out.

Until somebody wants more of it than that, a stand-in answers; any other question loads the real one, which then stays.
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
        """Nothing is being compiled."""

    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """Nothing is being compiled, so the function is as good as any."""
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # what looks through all modules is no user of this one
            raise AttributeError(name)
        if sys.modules.get(_MODULE_NAME) is self:
            del sys.modules[_MODULE_NAME], torch._dynamo
            importlib.import_module(_MODULE_NAME)
        return getattr(sys.modules[_MODULE_NAME], name)


def install() -> None:
    """Put the stand-in there, unless the real one is loaded already."""
    if _MODULE_NAME not in sys.modules:
        sys.modules[_MODULE_NAME] = torch._dynamo = _DynamoStub(_MODULE_NAME)
