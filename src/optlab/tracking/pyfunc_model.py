"""MLflow model of a run's weights, "from code": MLflow runs this file where the model is loaded.

It imports torch, and the code beside the weights, only then: logging a model imports neither.
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
    "mlflow", "numpy", "psutil", "pydantic", "ruamel.yaml", "safetensors", "torch", "torchvision", "tqdm"
)  # fmt: skip


def log_model(name: str, model_id: str, weights: Path, model: str, digest: str) -> None:
    """Log weights as the content of an initialized logged model.

    Args:
        name: of the logged model.
        model_id: of the logged model.
        weights: a .safetensors file.
        model: name in params.yaml.
        digest: the SHA-256 of the file, which is checked whenever the model is loaded.

    Raises:
        Exception: whatever MLflow raises.
    """
    package = Path(__file__).parents[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that type hints and an example are missing: there is a signature
        mlflow.pyfunc.log_model(
            name=name, model_id=model_id, python_model=__file__, artifacts={"weights": str(weights)},
            model_config={"model": model, "sha256": digest}, signature=_SIGNATURE,
            code_paths=[str(each) for each in (package, *_list_custom_code(model)) if each.exists()],
            pip_requirements=[f"{each}=={version(each).partition('+')[0]}" for each in list_requirements(model)],
        )  # fmt: skip


def _list_custom_code(model: str) -> list[Path]:
    """Return the folder custom/, and the module or package at the top that defines a model, if any."""
    top_paths = {Path(each.parts[0]) for each in source_code.find_user_modules([model])}
    return [each.absolute() for each in sorted({repository.CUSTOM, *top_paths})]


def list_requirements(model: str) -> list[str]:
    """Return the packages that are needed to load a model: this package's, and those of a dotted model's modules."""
    packages = set(_BASE_REQUIREMENTS)
    if "." in model:
        modules = {model}
        for name in source_code.find_user_modules([model]):
            modules |= set(source_code.parse_imports(name))
        known = packages_distributions()
        packages |= {package for each in modules for package in known.get(each.partition(".")[0], ())}
    return sorted(packages - {"optlab"})


class PyfuncClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Classifier from images to logits."""

    def load_context(self, context: Any) -> None:
        """Load the weights, with the same checks as everywhere in this repository.

        Raises:
            WeightsError: the file is missing, altered, no safetensors, or of another model.
        """
        from optlab.training import weights

        path = Path(context.artifacts["weights"])
        sys.path.append(str(path.parents[1] / "code" / repository.CUSTOM))  # a model can be a module of it
        self._model, _ = weights.load_model(path, context.model_config["model"], context.model_config["sha256"])

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        """Return the logits, float32, shape (n, 10).

        Args:
            context: as in `load_context`.
            model_input: float32, shape (n, 3, 32, 32): red, green and blue from 0 to 1.
            params: unused.
        """
        import torch

        with torch.inference_mode():
            return self._model(torch.from_numpy(np.array(model_input, np.float32))).numpy()


mlflow.models.set_model(PyfuncClassifier())
