"""Checkpoints: the state that a killed training resumes from, in one file that is replaced atomically.

Batch order and schedule are functions of the step, so the state is weights and buffers, the optimizers' states, the
random generators and the losses so far. The file is safetensors, with the rest as JSON in its metadata: reading it
executes nothing. Its name holds its SHA-256, so that damage is detected.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from optlab.data import cifar10
from optlab.records import Environment, EpochMetrics, ValidationMetrics
from optlab.schema.parameters import Config
from optlab.system import files, repository, source_code
from optlab.system.errors import StorageError, print_stderr, summarize_error
from optlab.training import class_import, determinism
from optlab.training.loop import Checkpointer, TrainResult
from optlab.training.optimizer_driver import OptimizerDriver

CHECKPOINTS_DIR = Path(".optlab") / "checkpoints"

_MAX_OVERHEAD = 1 / 200  # of the time, at most, goes into checkpoints
_MIN_INTERVAL_S = 1.0  # between two of them


def compute_fingerprint(config: Config, name: str, seed: int, environment: Environment, code: Mapping[str, str]) -> str:
    """Return a digest of all that decides a run: 32 hexadecimal digits of a SHA-256.

    These are the parameters, the data, the code, the installed packages with their versions, and the environment.

    Args:
        code: as `source_code.hash_code` returns it. The user's modules that are imported by now are added: they include
            those that are imported by a computed name.

    Raises:
        ConfigError: a module that the parameters name cannot be imported.
    """
    for path in config.list_class_paths(name):
        if "." in path:
            class_import.resolve(path, path)
    inputs = {
        "run": [name, seed],
        "model": config.model,
        "data": config.data.model_dump(exclude={"mirror_test"}),
        "files": cifar10.compute_digest(config.data.dataset),
        "training": config.training.model_dump(),
        "optimizer": config.get_optimizer(name).model_dump(),
        "code": {**code, **source_code.hash_files(_list_imported_user_modules())},
        "packages": repository.list_installed_packages(),
        "conditions": environment.model_dump(),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def _list_imported_user_modules() -> list[Path]:
    """Return the imported modules but for the package and the stages: which of these are imported is no matter."""
    excluded_folders = (source_code.PACKAGE, source_code.STAGES)
    return [name for name in source_code.find_imported_modules() if not any(map(name.is_relative_to, excluded_folders))]


class FileCheckpointer(Checkpointer):
    """Checkpointer that saves into a folder, as often as keeps its cost below half a percent of the time.

    Args:
        folder: of this run only; its path contains the run's fingerprint and the name of its event log.
        flush_before_save: called before each save, to put the event log on the disk first.
    """

    def __init__(self, folder: Path, flush_before_save: Callable[[], None]) -> None:
        self._folder, self._flush_before_save = folder, flush_before_save
        self._last_saved_s = time.monotonic()
        self._save_duration_s = 0.0
        self._warned = False

    def restore(self, result: TrainResult, driver: OptimizerDriver) -> bool:
        """Restore model, optimizers and result from the last usable checkpoint; return whether there is one.

        Unusable checkpoints are removed with a warning.

        Raises:
            StorageError: a file cannot be read.
        """
        candidates = self.list_files()
        while candidates:
            path = candidates.pop()
            backup = _encode(_collect_state(result, driver))
            try:
                _apply_state(_decode(_read_verified(path)), result, driver)
            except OSError as error:
                raise StorageError(f"{path}: cannot be read ({error.strerror}): mend that, or delete it") from None
            except (MemoryError, torch.OutOfMemoryError):
                raise  # not caused by the checkpoint
            except Exception as error:  # whatever damage makes the readers raise
                _apply_state(_decode(backup), result, driver)
                then = "an earlier one is tried" if candidates else "the training starts over"
                _warn(f"{path}: refused ({summarize_error(error)[:200]}): {then}")
                path.unlink(missing_ok=True)
                continue
            return True
        return False

    def list_files(self) -> list[Path]:
        """Return the checkpoint files, the latest last."""
        return sorted(path for path in self._folder.glob("*.safetensors") if path.is_file())

    def on_step_end(self, result: TrainResult, driver: OptimizerDriver) -> None:
        """Save if the time since the last checkpoint is long enough."""
        if time.monotonic() - self._last_saved_s < max(_MIN_INTERVAL_S, self._save_duration_s / _MAX_OVERHEAD):
            return
        began = time.monotonic()
        try:
            self.save(result, driver)
        except (StorageError, ValueError) as error:
            if not self._warned:
                _warn(f"no checkpoint ({error}): the training goes on; if it is killed, it repeats more")
            self._warned = True
        self._last_saved_s = time.monotonic()
        self._save_duration_s = self._last_saved_s - began

    def save(self, result: TrainResult, driver: OptimizerDriver) -> None:
        """Write a checkpoint, and remove the previous one.

        Raises:
            StorageError: it cannot be written.
            ValueError: the state of an optimizer has objects other than tensors, numbers and texts.
        """
        self._flush_before_save()
        content = _encode(_collect_state(result, driver))
        steps = sum(len(losses) for losses in result.step_losses)
        path = self._folder / f"{steps:09d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        files.write_atomic(path, content)
        for other in self._folder.iterdir():
            if other != path and other.is_file():
                other.unlink()


def delete(run: str) -> None:
    """Remove all checkpoints of a run, those of other parameters as well."""
    shutil.rmtree(CHECKPOINTS_DIR / run, ignore_errors=True)


def _warn(text: str) -> None:
    print_stderr(f"warning: {text}")


def _read_verified(path: Path) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.stem.partition("-")[2]:
        raise ValueError("damaged: its SHA-256 is not the one in its name")
    return content


def _collect_state(result: TrainResult, driver: OptimizerDriver) -> dict[str, Any]:
    return {
        "hyperparameters": str(result.hyperparameters),
        "model": _get_tensors(result.model),
        "optimizers": [_get_optimizer_state(optimizer) for optimizer in _get_checkpointed_optimizers(driver)],
        "mode": driver.mode,
        "rates": driver.get_lr_state(),
        "generators": determinism.get_rng_state(),
        "epochs": [epoch.model_dump() for epoch in result.epochs],
        "validations": [each.model_dump() for each in result.validations],
        "gradients": list(result.gradients),
        "step_losses": [torch.tensor(losses, dtype=torch.float64) for losses in result.step_losses],
    }


def _apply_state(state: dict[str, Any], result: TrainResult, driver: OptimizerDriver) -> None:
    tensors = _get_tensors(result.model)
    if {name: (value.shape, value.dtype) for name, value in tensors.items()} != {
        name: (value.shape, value.dtype) for name, value in state["model"].items()
    }:
        raise ValueError("of another model")
    # Those of the new optimizer: `load_state_dict` adds to the defaults of some classes.
    if state["hyperparameters"] != str(result.hyperparameters):
        raise ValueError("of another optimizer")
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(state["model"][name])
    for optimizer, saved in zip(_get_checkpointed_optimizers(driver), state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
        if _encode(optimizer.state_dict()) != _encode(saved):
            raise ValueError(f"{type(optimizer).__name__} does not take back the state that it gave")
    driver.mode = state["mode"]
    driver.load_lr_state(state["rates"])
    determinism.set_rng_state(state["generators"])
    result.epochs[:] = [EpochMetrics(**epoch) for epoch in state["epochs"]]
    result.validations[:] = [ValidationMetrics(**each) for each in state["validations"]]
    result.gradients[:] = state["gradients"]
    result.step_losses[:] = [losses.tolist() for losses in state["step_losses"]]


def _get_checkpointed_optimizers(driver: OptimizerDriver) -> list[Optimizer]:
    if driver.checkpointed_optimizers is None:
        names = ", ".join(type(each).__name__ for each in driver.optimizers)
        raise ValueError(f"the state that {names} gives is not all that it goes on from")
    return driver.checkpointed_optimizers


def _get_optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return a state dict; refuse complex tensors of real parameters, which `load_state_dict` would cast to real."""
    for parameter, own in getattr(optimizer, "state", {}).items():
        for value in own.values() if isinstance(own, dict) else ():
            if isinstance(value, Tensor) and value.is_complex() and not parameter.is_complex():
                raise ValueError(f"a tensor of {value.dtype} in the state of the optimizer cannot be saved")
    return optimizer.state_dict()


def _get_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, also those that `state_dict` leaves out."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _encode(value: Any) -> bytes:
    tensors: dict[str, Tensor] = {}
    description = json.dumps(_describe(value, tensors))
    storage_pointers = [each.untyped_storage().data_ptr() for each in tensors.values() if each.numel()]
    if len(set(storage_pointers)) < len(storage_pointers):
        raise ValueError("tensors in the state of the optimizer share their memory")
    try:
        return save({name: each.cpu().contiguous() for name, each in tensors.items()}, metadata={"state": description})
    except KeyError as error:  # a dtype that the format has not
        raise ValueError(
            f"a tensor of {summarize_error(error)} in the state of the optimizer cannot be saved"
        ) from None


def _decode(content: bytes) -> Any:
    length = int.from_bytes(content[:8], "little")
    description = json.loads(content[8 : 8 + length])["__metadata__"]["state"]
    # Copies: torch's own memory is aligned, which some kernels' last bits depend on.
    tensors = {name: value.clone() for name, value in load(content).items()}
    return _rebuild(json.loads(description), tensors)


def _describe(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Convert `value` to JSON, and put its tensors into `tensors`; dicts, tuples and keys keep their types."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise ValueError(f"a tensor of the layout {value.layout} in the state of the optimizer cannot be saved")
        name = str(len(tensors))
        # The order of the dimensions in memory, which the last bits of a matrix product depend on.
        strides = value.stride()
        order = sorted(range(value.ndim), key=lambda dimension: -strides[dimension])
        tensors[name] = value.detach().permute(order)
        return {"tensor": [name, order]}
    if isinstance(value, dict):
        return {"dict": [[_describe(name, tensors), _describe(each, tensors)] for name, each in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_describe(each, tensors) for each in value]}
    if isinstance(value, list):
        return [_describe(each, tensors) for each in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"a {type(value).__name__} in the state of the optimizer cannot be saved")


def _rebuild(description: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(description, list):
        return [_rebuild(each, tensors) for each in description]
    if not isinstance(description, dict):
        return description
    ((kind, content),) = description.items()
    if kind == "tensor":
        name, order = content
        return tensors[name].permute([order.index(dimension) for dimension in range(len(order))])
    if kind == "dict":
        return {_rebuild(name, tensors): _rebuild(each, tensors) for name, each in content}
    return tuple(_rebuild(each, tensors) for each in content)
