"""Make torchvision importable beside a CPU build of torch, for every program of the environment.

The package index serves torchvision for Linux as a CUDA build. Beside a CPU build of torch its compiled part cannot
load, and `import torchvision` fails because the operators `nms` and `qnms` have no schema. Declaring them makes data
sets, transforms and models work. torch calls `declare` at every import, through the entry point `torch.backends`, so
that MLflow and Lightning can import torchvision, too.
"""

import importlib.util
from pathlib import Path
from typing import Any

_KEEP_ALIVE: list[Any] = []  # the declarations of a library end when it is collected


def declare() -> None:
    """Declare the two operators if torchvision is installed and its compiled part cannot load; never raises."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or spec.origin is None:
        return
    compiled = next(Path(spec.origin).parent.glob("_C.*"), None)
    if compiled is None or _loads(str(compiled)):
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP_ALIVE.append(library)


def _loads(path: str) -> bool:
    import torch

    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError):
        return False
    return True
