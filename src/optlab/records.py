"""The record, typed: the same bytes every time. No times, no host names, no ids.

A key that a later version has added has a default, so that what an earlier one wrote stays readable.

Where the files of the record lie.

The conditions of earlier trainings, by the weights that came out under them.

DVC's run cache brings an earlier training's outputs back. Its conditions are none of them: those of the training in
between have taken their place.
"""

import dataclasses
import json
import math
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optlab.schema.parameters import format_run_id
from optlab.system import files, repository
from optlab.system.errors import RecordError

if TYPE_CHECKING:  # a served model imports this module, and needs no packages but those that it lists
    from optlab.system.git import Revision

Status = Literal["completed", "diverged"]
TrialStatus = Literal["completed", "stopped", "diverged", "failed"]


class Record(BaseModel):
    """One file of the record, or a part of one: frozen."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """The file's content, typed.

        Raises:
            RecordError: it is no such file, or damaged; the message calls it by `where`.
        """
        try:
            return cls.model_validate(json.loads(content))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        except ValueError as error:
            reason = str(error)
        raise RecordError(f"{where}: damaged ({reason}): delete it, then run `dvc repro`")

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote.

        Raises:
            RecordError: it is missing or damaged.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RecordError(f"{path}: {error.strerror}: run `dvc repro`") from None
        return cls.parse(content, str(path))

    @classmethod
    def read_at_revision(cls, revision: "Revision", path: Path) -> Self | None:
        """What a git revision holds; None if that is missing or damaged."""
        content = revision.read(path)
        try:
            return cls.parse(content, str(path)) if content else None
        except RecordError:
            return None

    def write(self, path: Path) -> None:
        """One line per key, and per element of a list: readable, and diffs stay small.

        Raises:
            StorageError: it cannot be written.
        """
        lines = []
        for key, item in self.model_dump(mode="json").items():
            if isinstance(item, list):
                rows = ",\n    ".join(json.dumps(each, allow_nan=False) for each in item)
                lines.append(f'  "{key}": [\n    {rows}\n  ]')
            else:
                lines.append(f'  "{key}": {json.dumps(item, allow_nan=False)}')
        files.write_atomic(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


class EpochMetrics(Record):
    """What is known after an epoch; losses are mean cross entropies in nats.

    Attributes:
        epoch: counted from 1.
        train_loss: mean over the images as they were trained on; None if it is not finite.
        running_loss: the tutorial's figure: the sum over the batches, added up in float32; None if it is not finite.
        validation_loss: after the epoch; None without a validation split, or if it, a logit or a figure above is not
            finite.
        validation_accuracy: a fraction; None as the loss.
        lr: the learning rate in force at its end; None where the class has none.
        gradients: how many were computed: one a step, or more; None in records of older versions.
    """

    epoch: int
    train_loss: float | None
    running_loss: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    lr: float | None
    gradients: int | None = None


class ValidationMetrics(Record):
    """A look at the validation split.

    Attributes:
        step: after how many steps of the run.
        loss: mean cross entropy in nats; None if a logit was not finite.
        accuracy: a fraction; None as the loss.
    """

    step: int
    loss: float | None
    accuracy: float | None


class TrainRecord(Record):
    """train.json.

    Attributes:
        epochs: how many were begun.
        train_loss, validation_loss, validation_accuracy: the last epoch's.
        hyperparameters: (name, value as text) of those in force, defaults included; none in records of older versions.
        history: every epoch.
        validations: every one, those at the ends of epochs as well; none in records of older versions.
        step_losses: for each epoch the loss of every step, as the shortest decimal that names the float32.
    """

    status: Status
    epochs: int
    train_loss: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    weights_sha256: str
    hyperparameters: list[tuple[str, str]] = Field(default_factory=list)
    history: list[EpochMetrics]
    validations: list[ValidationMetrics] = Field(default_factory=list)
    step_losses: list[list[float | None]]

    @property
    def all_validations(self) -> list[ValidationMetrics]:
        """The validations; in records of older versions those at the ends of epochs, which were all there were."""
        ends = accumulate(len(losses) for losses in self.step_losses)
        return self.validations or [
            ValidationMetrics(step=step, loss=epoch.validation_loss, accuracy=epoch.validation_accuracy)
            for epoch, step in zip(self.history, ends, strict=False)
            if epoch.validation_accuracy is not None
        ]

    @classmethod
    def from_training(
        cls,
        status: Status,
        history: list[EpochMetrics],
        validations: list[ValidationMetrics],
        step_losses: list[list[float]],
        hyperparameters: dict[str, Any],
        weights_sha256: str,
    ) -> Self:
        """The record of a finished training."""
        last = history[-1]
        return cls(
            status=status,
            epochs=len(history),
            train_loss=last.train_loss,
            validation_loss=last.validation_loss,
            validation_accuracy=last.validation_accuracy,
            weights_sha256=weights_sha256,
            hyperparameters=[(key, str(value)) for key, value in hyperparameters.items()],
            history=history,
            validations=validations,
            step_losses=[[_round_to_float32(loss) for loss in losses] for losses in step_losses],
        )


class EvalRecord(Record):
    """test.json; the figures are None and the lists empty where the outputs are not finite.

    Attributes:
        status: of the training, or `diverged` where the outputs are not finite.
        weights_sha256: of the weights that were evaluated; None, and not written, in records of older versions.
        test_loss: mean cross entropy in nats.
        test_accuracy: a fraction.
        expected_calibration_error: over 15 bins of equal width.
        class_accuracy: (class, fraction) of every class.
        confusion: counts of images, 10 × 10: rows are the actual classes, columns the predicted ones.
    """

    status: Status
    weights_sha256: str | None = Field(default=None, exclude_if=lambda digest: digest is None)
    test_loss: float | None = None
    test_accuracy: float | None = None
    expected_calibration_error: float | None = None
    class_accuracy: list[tuple[str, float]] = Field(default_factory=list)
    confusion: list[list[int]] = Field(default_factory=list)


class TrialRecord(Record):
    """One training of a tuning.

    Attributes:
        study: which of the independent tunings, from 0.
        index: of its point, from 0; None for the entry's default.
        seed: of its training.
        values: what it had in place of the ranges; of the default those that are known, none in records of older
            versions.
        beyond: the ranges whose value was drawn in the decade beyond their edge.
        status: `stopped` where others were better after a part of the steps; `failed` where a step raised an error.
        looks: at the validation split, where it was decided who goes on; the last is at its end.
        sought: the step that it was to reach when it diverged or failed; None where it did neither.
        key: a digest of all that decides it but the machine, by which it is known again.
    """

    study: int
    index: int | None
    seed: int
    values: dict[str, Any]
    beyond: list[str]
    status: TrialStatus
    looks: list[ValidationMetrics]
    sought: int | None = None
    key: str


class TrialsRecord(Record):
    """trials.json: all of them, none where nothing was tuned.

    Attributes:
        sensitivity: those of the grid over the learning rate; their index is that of the grid's point.
    """

    trials: list[TrialRecord]
    sensitivity: list[TrialRecord] = Field(default_factory=list)


class StudyResult(Record):
    """What one study has come to.

    Attributes:
        entry: the optimizer's, as params.yaml would have it without ranges.
        trial: the index of the trial that it is from; None for the default's.
        validation_accuracy: that trial's, a fraction; None where nothing was tuned, or all diverged.
        at_edge: the ranges at whose edge the value still lies.
    """

    entry: dict[str, Any]
    trial: int | None = None
    validation_accuracy: float | None = None
    at_edge: list[str] = Field(default_factory=list)


class TuningResult(Record):
    """choice.json: what the runs of an optimizer are trained with. It does not grow with the number of trials.

    Attributes:
        is_tuned: whether the entry had a range.
        studies: one, or one for each independent tuning.
        modules: path → SHA-256 of those of custom/ that the runs use.
    """

    is_tuned: bool
    studies: list[StudyResult]
    modules: dict[str, str]


class Environment(Record):
    """conditions.json: what the machine and the installed packages decided; beside the record, not part of it.

    Attributes:
        cpu_capability: ATen's.
        onednn_isa: oneDNN's instruction set, as ONEDNN_MAX_CPU_ISA names it; None where it is not known.
        variables: those that the libraries read while they load; None where one was not set.
        modules: path → SHA-256 of files of named modules that are neither in custom/ nor of an installed package.
        weights_sha256: of the weights that came out under these conditions.
    """

    python: str = "unknown"
    packages: dict[str, str | None] = Field(default_factory=dict)
    platform: str = "unknown"
    cpu: str = "unknown"
    cpu_capability: str = "unknown"
    onednn_isa: str | None = None
    threads: int = 0
    device: str = "unknown"
    variables: dict[str, str | None] = Field(default_factory=dict)
    modules: dict[str, str] = Field(default_factory=dict, exclude_if=lambda found: not found)
    weights_sha256: str | None = None

    @classmethod
    def read_for_weights(cls, path: Path, digest: str) -> Self | None:
        """Those under which these weights came out; None if none are recorded there, or those of another training.

        DVC's run cache brings back the outputs of an earlier run, and leaves the conditions of the last one.
        """
        if not path.exists():
            return None
        found = cls.read(path)
        return found if found.weights_sha256 == digest else None


class Champion(Record):
    """champion.json: the best completed run, None where every run diverged, and the figure that it was chosen by."""

    champion: str | None
    chosen_by: str
    validation_accuracy: float | None
    test_accuracy: float | None


def _round_to_float32(loss: float) -> float | None:
    """The shortest decimal that names the same float32; None if it is not finite."""
    return float(str(np.float32(loss))) if math.isfinite(loss) else None


MODELS_FOLDER = Path("models")
RUNS_FOLDER = Path("runs")
REPORTS_FOLDER = Path("reports")
TUNING_FOLDER = Path("tuning")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Where the files of one run lie, under the folder of its params.yaml."""

    folder: Path
    optimizer: str
    seed: int

    @classmethod
    def from_id(cls, folder: Path, run: str) -> Self:
        """Those of the run with that id."""
        optimizer, _, seed = run.rpartition("-")
        return cls(folder, optimizer, int(seed))

    @property
    def id(self) -> str:
        return format_run_id(self.optimizer, self.seed)

    @property
    def weights(self) -> Path:
        return self.folder / MODELS_FOLDER / f"{self.id}.safetensors"

    @property
    def training(self) -> Path:
        """Status, the last epoch's figures, every epoch, every step's loss."""
        return self.folder / RUNS_FOLDER / self.id / "train.json"

    @property
    def test(self) -> Path:
        """The metrics on the test split."""
        return self.folder / RUNS_FOLDER / self.id / "test.json"

    @property
    def predictions(self) -> Path:
        """One line per test image."""
        return self.folder / RUNS_FOLDER / self.id / "predictions.csv"

    @property
    def environment(self) -> Path:
        """What the machine decided; beside the record, not part of it."""
        return self.folder / RUNS_FOLDER / self.id / "conditions.json"


@dataclasses.dataclass(frozen=True)
class TuningFiles:
    """Where the files of one optimizer's tuning lie, under the folder of its params.yaml."""

    folder: Path
    optimizer: str

    @property
    def choice(self) -> Path:
        """What its runs are trained with."""
        return self.folder / TUNING_FOLDER / self.optimizer / "choice.json"

    @property
    def trials(self) -> Path:
        """Every trial."""
        return self.folder / TUNING_FOLDER / self.optimizer / "trials.json"


_KEPT_ENVIRONMENTS = Path(".optlab") / "conditions"


def keep_environment(run: RunFiles) -> None:
    """Keep a run's conditions, before others take their place.

    Raises:
        RecordError: they are damaged.
        StorageError: they cannot be kept.
    """
    digest = Environment.read(run.environment).weights_sha256 if run.environment.exists() else None
    if digest:
        files.write_atomic(_get_kept_path(digest), run.environment.read_bytes())


def restore_environment(run: RunFiles) -> None:
    """Put the conditions of a run's weights back, if others are there and these were kept; else keep them.

    Raises:
        RecordError: a file of its record is missing or damaged.
        StorageError: a file cannot be written.
    """
    digest = TrainRecord.read(run.training).weights_sha256
    if Environment.read_for_weights(run.environment, digest):
        keep_environment(run)
    elif _get_kept_path(digest).is_file():
        files.write_atomic(run.environment, _get_kept_path(digest).read_bytes())


def _get_kept_path(digest: str) -> Path:
    return repository.get_state_root() / _KEPT_ENVIRONMENTS / f"{digest}.json"
