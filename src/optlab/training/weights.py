"""Weights files in safetensors format: reading one executes nothing, and an error is one line."""

import hashlib
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from optlab.system import files, repository
from optlab.system.errors import WeightsError, summarize_error
from optlab.training import models


def save_model(path: Path, model: nn.Module, model_name: str) -> str:
    """Write the weights, and return their SHA-256; equal weights give equal bytes.

    Raises:
        StorageError: the file cannot be written.
        WeightsError: a weight has a type that safetensors does not support.
    """
    content = encode(model, model_name)
    files.write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def encode(model: nn.Module, model_name: str) -> bytes:
    """Return the content of a weights file; weights that two layers share are in it twice.

    It has one metadata entry only: safetensors does not promise an order of several.

    Raises:
        WeightsError: a weight has a type that safetensors does not support.
    """
    tensors: dict[str, Tensor] = {}
    storage_pointers: set[int] = set()
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            kind = value.layout if isinstance(value, Tensor) else type(value).__name__
            raise WeightsError(f"{model_name}: {key} is of the kind {kind}: weights are dense tensors")
        tensors[key] = value.contiguous()
        storage_pointer = tensors[key].untyped_storage().data_ptr()
        if storage_pointer in storage_pointers:
            tensors[key] = tensors[key].clone()
        storage_pointers.add(storage_pointer)
    try:
        return save(tensors, metadata={"model": model_name})
    except KeyError as error:  # a dtype that the format has not
        raise WeightsError(f"{model_name}: weights of {summarize_error(error)} cannot be saved") from None


def load_model(path: Path, model_name: str, expected: str | None = None) -> tuple[nn.Module, str]:
    """Build the model with these weights; return it in evaluation mode, and the SHA-256 of the file.

    The file names its model, but only the caller decides which one is built, for a name can be a callable's path.

    Args:
        model_name: as params.yaml has it.
        expected: required SHA-256 of the file, if known.

    Raises:
        WeightsError: the file is missing, altered, truncated, no safetensors, or of another model.
        ConfigError: the model cannot be built.
    """
    try:
        content = path.read_bytes()
        with safetensors.safe_open(path, framework="pt") as file:
            name = (file.metadata() or {}).get("model")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}: run `dvc repro` or `dvc pull`") from None
    except safetensors.SafetensorError as error:
        remedy = repository.suggest_repair(path, content, "dvc repro")
        raise WeightsError(f"{path}: damaged or not safetensors ({error}): {remedy}") from None
    digest = hashlib.sha256(content).hexdigest()
    if expected not in (None, digest):
        raise WeightsError(
            f"{path}: altered since it was written (SHA-256 {digest[:12]}…, recorded {str(expected)[:12]}…): "
            f"{repository.suggest_repair(path, content, 'dvc repro')}"
        )
    if name is None:
        raise WeightsError(f"{path}: does not say which model it belongs to: it was not written by optlab")
    if name != model_name:
        raise WeightsError(
            f"{path}: belongs to the model {name!r}, but params.yaml says {model_name!r}: run `dvc repro`"
        )
    model = models.build(model_name, seed=0)
    try:
        model.load_state_dict(tensors)  # into its own tensors: their dtypes stay
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise WeightsError(f"{path}: does not fit the model {model_name}: {text}") from None
    for key, own in model.state_dict().items():
        found, needed = tensors[key].dtype, getattr(own, "dtype", None)
        if found != needed:  # torch rounds it silently
            raise WeightsError(f"{path}: does not fit the model {model_name}: {key} is {found}, not {needed}")
    return model.eval(), digest
