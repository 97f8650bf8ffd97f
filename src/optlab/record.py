"""The record: what a run leaves on disk, the same bytes every time. No times, no host names, no ids."""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab import files
from optlab.config import run_id
from optlab.errors import RecordError

if TYPE_CHECKING:
    from optlab.training import Outcome

MODELS = Path("models")
RUNS = Path("runs")
REPORTS = Path("reports")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Where the files of one run lie, under the folder of its params.yaml."""

    folder: Path
    optimizer: str
    seed: int

    @property
    def id(self) -> str:
        return run_id(self.optimizer, self.seed)

    @property
    def weights(self) -> Path:
        return self.folder / MODELS / f"{self.id}.safetensors"

    @property
    def training(self) -> Path:
        """Status, the last epoch's figures, every epoch, every step's loss."""
        return self.folder / RUNS / self.id / "train.json"

    @property
    def test(self) -> Path:
        """The metrics on the test split."""
        return self.folder / RUNS / self.id / "test.json"

    @property
    def predictions(self) -> Path:
        """One line per test image."""
        return self.folder / RUNS / self.id / "predictions.csv"

    @property
    def conditions(self) -> Path:
        """What the machine decided; beside the record, not part of it."""
        return self.folder / RUNS / self.id / "conditions.json"


def training_record(outcome: "Outcome", weights_sha256: str) -> dict[str, Any]:
    """The content of train.json. The scalars come first: DVC shows them as metrics and skips the lists."""
    last = outcome.epochs[-1]
    return {
        "status": outcome.status,
        "epochs": len(outcome.epochs),
        "train_loss": last.train_loss,
        "validation_loss": last.validation_loss,
        "validation_accuracy": last.validation_accuracy,
        "weights_sha256": weights_sha256,
        "history": [dataclasses.asdict(epoch) for epoch in outcome.epochs],
        "step_losses": [[_shortest(loss) for loss in losses] for losses in outcome.step_losses],
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """One line per key, and per element of a list: readable, and diffs stay small. NaN is not written."""
    lines = []
    for key, item in value.items():
        if isinstance(item, list):
            rows = ",\n    ".join(json.dumps(each, allow_nan=False) for each in item)
            lines.append(f'  "{key}": [\n    {rows}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(item, allow_nan=False)}')
    files.write(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        RecordError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}: run `dvc repro`") from None
    except ValueError as error:
        raise RecordError(f"{path}: damaged ({error}): delete it, then run `dvc repro`") from None
    if not isinstance(value, dict):
        raise RecordError(f"{path}: damaged (not a mapping): delete it, then run `dvc repro`")
    return value


def _shortest(loss: float) -> float | None:
    """The shortest decimal that names the same float32; None if it is not finite."""
    return float(str(np.float32(loss))) if math.isfinite(loss) else None
