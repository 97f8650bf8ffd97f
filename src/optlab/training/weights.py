"""Weights as safetensors: read without executing anything, refused with one line when they do not fit."""

import hashlib
from pathlib import Path

import safetensors
from safetensors.torch import save
from torch import nn

from optlab.system import dvc, files
from optlab.system.errors import WeightsError
from optlab.training import models


def write(path: Path, model: nn.Module, model_name: str) -> str:
    """Write the weights; returns their SHA-256. The same weights give the same bytes.

    One metadata entry only: safetensors does not promise an order of several.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    content = save(tensors, metadata={"model": model_name})
    files.write(path, content)
    return hashlib.sha256(content).hexdigest()


def read(path: Path, model_name: str, expected: str | None = None) -> tuple[nn.Module, str]:
    """The model with these weights, in evaluation mode, and the SHA-256 of the file.

    The file names its model, but only the caller decides which one is built: a name can be a callable's path.

    Args:
        model_name: as params.yaml has it.
        expected: the SHA-256 that the file must have, where it is known.

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
        remedy = dvc.remedy(path, content, "dvc repro")
        raise WeightsError(f"{path}: damaged or not safetensors ({error}): {remedy}") from None
    digest = hashlib.sha256(content).hexdigest()
    if expected not in (None, digest):
        raise WeightsError(
            f"{path}: altered since it was written (SHA-256 {digest[:12]}…, recorded {str(expected)[:12]}…): "
            f"{dvc.remedy(path, content, 'dvc repro')}"
        )
    if name is None:
        raise WeightsError(f"{path}: does not say which model it belongs to: it was not written by optlab")
    if name != model_name:
        raise WeightsError(
            f"{path}: belongs to the model {name!r}, but params.yaml says {model_name!r}: run `dvc repro`"
        )
    model = models.build(model_name, seed=0)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise WeightsError(f"{path}: does not fit the model {model_name}: {text}") from None
    return model.eval(), digest
