"""What a killed training goes on from: all that the rest of the run depends on, in one file that is replaced whole.

The batch order and the schedule are functions of the step, so what is left are the weights and buffers, the optimizers'
states, the random generators, and the losses so far. The file is safetensors, with what is no tensor as JSON in its
metadata: nothing in it is executed. Its name holds its own SHA-256, so that a flipped bit is noticed.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from optlab.config.parameters import Config
from optlab.data import dataset
from optlab.record.contents import Conditions, Epoch, Validation
from optlab.system import files, repository
from optlab.system.errors import StorageError, one_line, say
from optlab.training import generators, models
from optlab.training.loop import Outcome, Saver
from optlab.training.stepping import Stepper

CHECKPOINTS = Path(".optlab") / "checkpoints"

_DECIDES = re.compile(
    r"optlab/(training/|record/|data/dataset|config/(entries|parameters|ranges))"
)  # as the stage declares it

_SHARE = 1 / 200  # of the time, at most, goes into checkpoints
_SHORTEST_S = 1.0  # between two of them


def key(config: Config, name: str, seed: int, conditions: Conditions) -> str:
    """A digest of all that decides a run: parameters, data, code, packages and the machine's conditions.

    The code is what decides a weight, of this package, all of custom/, and every other module of the repository that
    is imported by now or named; of the packages, all that are installed, the versions count. 32 hexadecimal digits of a
    SHA-256.

    Raises:
        ConfigError: a named module cannot be imported.
    """
    for path in config.paths(name):
        if "." in path:
            models.resolve(path, path)
    decides = {
        "run": [name, seed],
        "model": config.model,
        "data": config.data.model_dump(),
        "files": dataset.digest(config.data.dataset),
        "training": config.training.model_dump(),
        "optimizer": config.optimizer(name).model_dump(),
        "code": _code(),
        "packages": repository.packages(),
        "conditions": conditions.model_dump(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def _code() -> dict[str, str]:
    """Path → SHA-256 of the modules that were imported from below the working directory, or decide from this package.

    The rest of this package watches, and differs between the ways to start a training.
    """
    found = {}
    own_modules = {path.as_posix(): path for path in repository.CUSTOM.rglob("*.py")}
    for name, path in (repository.modules() | own_modules).items():
        own = _DECIDES.search(name)
        if own or not name.startswith(("src/optlab/", "optlab/", "pipeline/")):
            found[name[own.start() :] if own else name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Checkpoint(Saver):
    """Saves a training now and then, and brings it back.

    Args:
        folder: of this run alone: below one named by its `key`, and named by the journal that has its losses so far.
        before: called before each save; what it writes is on the disk before the checkpoint counts.
    """

    def __init__(self, folder: Path, before: Callable[[], None]) -> None:
        self._folder, self._before = folder, before
        self._saved = time.monotonic()
        self._cost = 0.0
        self._warned = False

    def restore(self, outcome: Outcome, stepper: Stepper) -> bool:
        """Bring model, optimizers and outcome to where they were saved last; False, and no change, if never.

        A checkpoint that cannot be used is refused with a warning, and removed.

        Raises:
            StorageError: it cannot be read at all.
        """
        left = self.saved()
        while left:
            path = left.pop()
            untouched = _encode(_state(outcome, stepper))
            try:
                _apply(_decode(_verified(path)), outcome, stepper)
            except OSError as error:
                raise StorageError(f"{path}: cannot be read ({error.strerror}): mend that, or delete it") from None
            except (MemoryError, torch.OutOfMemoryError):
                raise  # the checkpoint is not to blame
            except Exception as error:  # whatever damage makes the readers raise
                _apply(_decode(untouched), outcome, stepper)
                then = "an earlier one is tried" if left else "the training starts over"
                _warn(f"{path}: refused ({one_line(error)[:200]}): {then}")
                path.unlink(missing_ok=True)
                continue
            return True
        return False

    def saved(self) -> list[Path]:
        """Its files, the last one at the end; what else has such a name is nobody's."""
        return sorted(path for path in self._folder.glob("*.safetensors") if path.is_file())

    def after_step(self, outcome: Outcome, stepper: Stepper) -> None:
        """Save if it is time: as often as keeps the cost within its share."""
        if time.monotonic() - self._saved < max(_SHORTEST_S, self._cost / _SHARE):
            return
        began = time.monotonic()
        try:
            self.save(outcome, stepper)
        except (StorageError, ValueError) as error:
            if not self._warned:
                _warn(f"no checkpoint ({error}): the training goes on; if it is killed, it repeats more")
            self._warned = True
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def save(self, outcome: Outcome, stepper: Stepper) -> None:
        """Write a checkpoint, and remove the one before.

        Raises:
            StorageError: it cannot be written.
            ValueError: the state of an optimizer is more than tensors, numbers and texts.
        """
        self._before()
        content = _encode(_state(outcome, stepper))
        steps = sum(len(losses) for losses in outcome.step_losses)
        path = self._folder / f"{steps:09d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        files.write(path, content)
        for other in self._folder.iterdir():
            if other != path and other.is_file():
                other.unlink()


def remove(run: str) -> None:
    """A run of that name is complete: remove its checkpoints, and what other parameters have left."""
    shutil.rmtree(CHECKPOINTS / run, ignore_errors=True)


def _warn(text: str) -> None:
    say(f"warning: {text}")


def _verified(path: Path) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.stem.partition("-")[2]:
        raise ValueError("damaged: its SHA-256 is not the one in its name")
    return content


def _state(outcome: Outcome, stepper: Stepper) -> dict[str, Any]:
    return {
        "hyperparameters": str(stepper.hyperparameters()),
        "model": _tensors_of(outcome.model),
        "optimizers": [_own_state(optimizer) for optimizer in _stateful(stepper)],
        "mode": stepper.mode,
        "rates": stepper.rate_state(),
        "generators": generators.state(),
        "epochs": [epoch.model_dump() for epoch in outcome.epochs],
        "validations": [each.model_dump() for each in outcome.validations],
        "gradients": list(outcome.gradients),
        "step_losses": [torch.tensor(losses, dtype=torch.float64) for losses in outcome.step_losses],
    }


def _apply(state: dict[str, Any], outcome: Outcome, stepper: Stepper) -> None:
    own = _tensors_of(outcome.model)
    if {name: (value.shape, value.dtype) for name, value in own.items()} != {
        name: (value.shape, value.dtype) for name, value in state["model"].items()
    }:
        raise ValueError("of another model")
    if state["hyperparameters"] != str(stepper.hyperparameters()):
        raise ValueError("of another optimizer")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state["model"][name])
    for optimizer, saved in zip(_stateful(stepper), state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
        if _encode(optimizer.state_dict()) != _encode(saved):
            raise ValueError(f"{type(optimizer).__name__} does not take back the state that it gave")
    stepper.mode = state["mode"]
    stepper.restore_rates(state["rates"])
    generators.restore(state["generators"])
    outcome.epochs[:] = [Epoch(**epoch) for epoch in state["epochs"]]
    outcome.validations[:] = [Validation(**each) for each in state["validations"]]
    outcome.gradients[:] = state["gradients"]
    outcome.step_losses[:] = [losses.tolist() for losses in state["step_losses"]]


def _stateful(stepper: Stepper) -> list[Optimizer]:
    if stepper.stateful is None:
        names = ", ".join(type(each).__name__ for each in stepper.optimizers)
        raise ValueError(f"the state that {names} gives is not all that it goes on from")
    return stepper.stateful


def _own_state(optimizer: Optimizer) -> dict[str, Any]:
    """Torch's `load_state_dict` casts to the parameter's dtype: of a complex number, a real one has the real part."""
    for parameter, own in getattr(optimizer, "state", {}).items():
        for value in own.values() if isinstance(own, dict) else ():
            if isinstance(value, Tensor) and value.is_complex() and not parameter.is_complex():
                raise ValueError(f"a tensor of {value.dtype} in the state of the optimizer cannot be saved")
    return optimizer.state_dict()


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those as well that a model's `state_dict` leaves out."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _encode(value: Any) -> bytes:
    tensors: dict[str, Tensor] = {}
    described = json.dumps(_describe(value, tensors))
    places = [each.untyped_storage().data_ptr() for each in tensors.values() if each.numel()]
    if len(set(places)) < len(places):
        raise ValueError("tensors in the state of the optimizer share their memory")
    try:
        return save({name: each.cpu().contiguous() for name, each in tensors.items()}, metadata={"state": described})
    except KeyError as error:  # a dtype that the format has not
        raise ValueError(f"a tensor of {one_line(error)} in the state of the optimizer cannot be saved") from None


def _decode(content: bytes) -> Any:
    length = int.from_bytes(content[:8], "little")
    described = json.loads(content[8 : 8 + length])["__metadata__"]["state"]
    # Copies: torch's own memory is aligned, which some kernels' last bits depend on.
    tensors = {name: value.clone() for name, value in load(content).items()}
    return _rebuild(json.loads(described), tensors)


def _describe(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors put aside under numbers; dicts and tuples keep their kind, keys theirs."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise ValueError(f"a tensor of the layout {value.layout} in the state of the optimizer cannot be saved")
        name = str(len(tensors))
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_describe(name, tensors), _describe(each, tensors)] for name, each in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_describe(each, tensors) for each in value]}
    if isinstance(value, list):
        return [_describe(each, tensors) for each in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"a {type(value).__name__} in the state of the optimizer cannot be saved")


def _rebuild(described: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(described, list):
        return [_rebuild(each, tensors) for each in described]
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_rebuild(name, tensors): _rebuild(each, tensors) for name, each in content}
    return tuple(_rebuild(each, tensors) for each in content)
