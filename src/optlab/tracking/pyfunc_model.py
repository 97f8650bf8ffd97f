"""A run's weights as a model of MLflow's, "from code": MLflow runs this file where the model is loaded.

It imports torch, and the code that lies beside the weights, only there: logging a model costs neither.
"""

import sys
import warnings
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from optlab.system import repository, source_code

_SIGNATURE = ModelSignature(
    Schema([TensorSpec(np.dtype(np.float32), (-1, 3, 32, 32))]), Schema([TensorSpec(np.dtype(np.float32), (-1, 10))])
)
_BASE_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "psutil",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "torch",
    "torchvision",
    "tqdm",
)


def log_model(name: str, model_id: str, weights: Path, model: str, digest: str) -> None:
    """Log weights under a logged model that was initialized.

    Args:
        name: of the logged model.
        model_id: of the logged model.
        weights: a .safetensors file.
        model: its name in params.yaml.
        digest: the SHA-256 of the file, which is checked whenever the model is loaded.

    Raises:
        Exception: whatever MLflow raises.
    """
    package = Path(__file__).parents[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of type hints and an example: the signature says it all
        mlflow.pyfunc.log_model(
            name=name, model_id=model_id, python_model=__file__, artifacts={"weights": str(weights)},
            model_config={"model": model, "sha256": digest}, signature=_SIGNATURE,
            code_paths=[str(each) for each in (package, *_list_custom_code(model)) if each.exists()],
            pip_requirements=[f"{each}=={version(each).partition('+')[0]}" for each in list_requirements(model)],
        )  # fmt: skip


def _list_custom_code(model: str) -> list[Path]:
    """The folder custom/, and the module or package at the top that a model is from, if it is."""
    top_paths = {Path(each.parts[0]) for each in source_code.find_user_modules([model])}
    return [each.absolute() for each in sorted({repository.CUSTOM, *top_paths})]


def list_requirements(model: str) -> list[str]:
    """The packages that loading a model takes: this package's, and those that a dotted model leads to or imports."""
    found = set(_BASE_REQUIREMENTS)
    if "." in model:
        modules = {model}
        for name in source_code.find_user_modules([model]):
            modules |= set(source_code.parse_imports(name))
        known = packages_distributions()
        found |= {package for each in modules for package in known.get(each.partition(".")[0], ())}
    return sorted(found - {"optlab"})


class PyfuncClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Images in, logits out."""

    def load_context(self, context: Any) -> None:
        """Read the weights as every program of this repository does.

        Raises:
            WeightsError: the file is missing, altered, no safetensors, or of another model.
        """
        from optlab.training import weights

        path = Path(context.artifacts["weights"])
        sys.path.append(str(path.parents[1] / "code" / repository.CUSTOM))  # a model can be a module of it
        self._model, _ = weights.load_model(path, context.model_config["model"], context.model_config["sha256"])

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        """Logits, float32, shape (n, 10).

        Args:
            context: as in `load_context`.
            model_input: float32, shape (n, 3, 32, 32): red, green and blue from 0 to 1.
            params: unused.
        """
        import torch

        with torch.inference_mode():
            return self._model(torch.from_numpy(np.array(model_input, np.float32))).numpy()


mlflow.models.set_model(PyfuncClassifier())
