"""Where the files of the record lie."""

import dataclasses
from pathlib import Path
from typing import Self

from optlab.config.parameters import run_id

MODELS = Path("models")
RUNS = Path("runs")
REPORTS = Path("reports")
TUNING = Path("tuning")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Where the files of one run lie, under the folder of its params.yaml."""

    folder: Path
    optimizer: str
    seed: int

    @classmethod
    def of(cls, folder: Path, run: str) -> Self:
        """Those of the run with that id."""
        optimizer, _, seed = run.rpartition("-")
        return cls(folder, optimizer, int(seed))

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


@dataclasses.dataclass(frozen=True)
class TuningFiles:
    """Where the files of one optimizer's tuning lie, under the folder of its params.yaml."""

    folder: Path
    optimizer: str

    @property
    def choice(self) -> Path:
        """What its runs are trained with."""
        return self.folder / TUNING / self.optimizer / "choice.json"

    @property
    def trials(self) -> Path:
        """Every trial."""
        return self.folder / TUNING / self.optimizer / "trials.json"
