"""Record of a pipeline: typed files, their paths, and the conditions of earlier trainings. The only reader and writer.

Files hold no times, host names or ids, so that the same training gives the same bytes. Fields added by a later version
have defaults, so that files of earlier versions stay readable.
"""

import base64
import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config, format_run_id
from optlab.system import files, repository
from optlab.system.errors import RecordError
from optlab.system.text import describe_conflict, find_conflict_marker

if TYPE_CHECKING:  # a served model imports this module, and needs no packages but those that it lists
    from optlab.system.git import Revision

Status = Literal["completed", "diverged"]
TrialStatus = Literal["completed", "stopped", "diverged", "failed"]


class Record(BaseModel):
    """One file of the record, or a part of one."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """Parse a file's content.

        Raises:
            RecordError: the content is damaged, or has conflict markers; the message names the file by `where`.
        """
        try:
            return cls.model_validate(json.loads(content))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        except ValueError as error:
            reason = str(error)
        marker_line = find_conflict_marker(content.decode(errors="replace"))
        if marker_line:
            raise RecordError(describe_conflict(where, marker_line))
        raise RecordError(f"{where}: damaged ({reason}): delete it, then run `dvc repro`")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            RecordError: the file is missing or damaged.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RecordError(f"{path}: {error.strerror}: run `dvc repro`") from None
        return cls.parse(content, str(path))

    @classmethod
    def read_at_revision(cls, revision: "Revision", path: Path) -> Self | None:
        """Read a file at a git revision; None if it is missing or damaged there."""
        content = revision.read(path)
        try:
            return cls.parse(content, str(path)) if content else None
        except RecordError:
            return None

    def write(self, path: Path) -> None:
        """Write the file, with one line per key and per element of a list, so that diffs stay small.

        Raises:
            StorageError: the file cannot be written.
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
    """One epoch's metrics; losses are mean cross entropies in nats.

    Attributes:
        epoch: counted from 1.
        train_loss: mean over the training images during the epoch; None if not finite.
        running_loss: the tutorial's loss: sum over the batches in float32; None if not finite.
        validation_loss: after the epoch; None without a validation split, or if a logit or a loss is not finite.
        validation_accuracy: a fraction; None where validation_loss is None.
        lr: learning rate at the end of the epoch; None where the optimizer has none.
        gradients: number of computed gradients: one per step, or more; None in records of older versions.
    """

    epoch: int
    train_loss: float | None
    running_loss: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    lr: float | None
    gradients: int | None = None


class ValidationMetrics(Record):
    """One validation.

    Attributes:
        step: completed steps of the run.
        loss: mean cross entropy in nats; None if a logit was not finite.
        accuracy: a fraction; None where loss is None.
    """

    step: int
    loss: float | None
    accuracy: float | None


class TrainRecord(Record):
    """train.json: one training.

    Attributes:
        epochs: number of epochs that were begun.
        train_loss, validation_loss, validation_accuracy: of the last epoch.
        hyperparameters: (name, value as text), defaults included; empty in records of older versions.
        validations: all of them, at the ends of epochs and between; empty in records of older versions.
        step_losses: for each epoch the loss of every step, as the shortest decimal of the float32.
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
        """Validations, taken from `history` in records of older versions, which had one per epoch."""
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
        """Create the record of a finished training."""
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
    """test.json: one evaluation; metrics are None and lists empty where the outputs are not finite.

    Attributes:
        status: of the training, or `diverged` where the outputs are not finite.
        weights_sha256: of the evaluated weights; None, and not written, in records of older versions.
        test_loss: mean cross entropy in nats.
        test_accuracy: a fraction.
        mirrored_test_accuracy: a fraction, of the mean of the logits of each image and of its mirror image; None, and
            not written, without `data.mirror_test`, or where a logit of a mirror image is not finite.
        expected_calibration_error: over 15 bins of equal width.
        class_accuracy: (class, fraction) per class.
        confusion: counts of images, 10 × 10: rows are the actual classes, columns the predicted ones.
        correct: which images are classified correctly, as `encode_mask` gives it: a list, because DVC would show a text
            as a metric; empty, and not written, in records of older versions.
    """

    status: Status
    weights_sha256: str | None = Field(default=None, exclude_if=lambda digest: digest is None)
    test_loss: float | None = None
    test_accuracy: float | None = None
    mirrored_test_accuracy: float | None = Field(default=None, exclude_if=lambda accuracy: accuracy is None)
    expected_calibration_error: float | None = None
    class_accuracy: list[tuple[str, float]] = Field(default_factory=list)
    confusion: list[list[int]] = Field(default_factory=list)
    correct: list[str] = Field(default_factory=list, exclude_if=lambda lines: not lines)

    @property
    def correct_mask(self) -> np.ndarray | None:
        """Whether each test image is classified correctly: bool, shape (n,), in file order; None without `correct`."""
        return decode_mask(self.correct, sum(map(sum, self.confusion))) if self.correct else None

    @model_validator(mode="after")
    def _check_correct(self) -> Self:
        mask, hits = self.correct_mask, sum(row[index] for index, row in enumerate(self.confusion))
        if mask is not None and mask.sum() != hits:
            raise ValueError(f"correct: has {mask.sum()} correct images, and the confusion matrix {hits}")
        return self


def encode_mask(mask: np.ndarray) -> list[str]:
    """Return base64 of the packed bits of a bool array, shape (n,), in lines of 76 characters."""
    return base64.encodebytes(np.packbits(mask).tobytes()).decode().split()


def decode_mask(lines: list[str], n: int) -> np.ndarray:
    """Return the array that `encode_mask` encoded.

    Raises:
        ValueError: the lines are no base64, or not of `n` bits.
    """
    packed = np.frombuffer(base64.b64decode("".join(lines), validate=True), np.uint8)
    if len(packed) != math.ceil(n / 8):
        raise ValueError(f"correct: has {len(packed)} bytes, and {n} images take {math.ceil(n / 8)}")
    return np.unpackbits(packed, count=n).astype(bool)


class TrialRecord(Record):
    """One trial of a search.

    Attributes:
        search: number of the search: the seed of the run that is trained with its choice, or 0 if it chooses for all
            seeds; `study` in records of older versions.
        index: number of the sampled point, from 0; None for the entry's default.
        seed: of the training.
        values: key of a range → value; for the default the known values, none in records of older versions.
        beyond: keys of ranges whose value was sampled in the decade beyond their edge.
        status: `stopped` where successive halving stopped it; `failed` where a step raised an error.
        looks: validations at the rungs; the last is at the trial's end.
        sought: step of the rung before which it diverged or failed; None where it did neither.
        key: digest of everything except the machine that decides the trial, to recognize it later.
    """

    search: int = Field(validation_alias=AliasChoices("search", "study"))
    index: int | None
    seed: int
    values: dict[str, Any]
    beyond: list[str]
    status: TrialStatus
    looks: list[ValidationMetrics]
    sought: int | None = None
    key: str


class TrialsRecord(Record):
    """trials.json: all trials of a search, none where nothing was tuned.

    Attributes:
        sensitivity: trials of the grid over the learning rate; `index` is the point of the grid.
    """

    trials: list[TrialRecord]
    sensitivity: list[TrialRecord] = Field(default_factory=list)


class Choice(Record):
    """choice.json: the entry that a run is trained with.

    Attributes:
        is_tuned: true if the entry has a range.
        entry: the optimizer's entry of params.yaml with chosen values in place of ranges.
        trial: index of the chosen trial; None for the default.
        validation_accuracy: of the chosen trial, a fraction; None where nothing was tuned or all trials diverged.
        at_edge: keys of ranges at whose edge the chosen value lies.
        modules: path → SHA-256 of the modules of custom/ that the run uses.
    """

    is_tuned: bool
    entry: dict[str, Any]
    trial: int | None = None
    validation_accuracy: float | None = None
    at_edge: list[str] = Field(default_factory=list)
    modules: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, values: Any) -> Any:
        """Read choice.json of earlier versions, where the choice is the only item of `studies`."""
        if isinstance(values, dict) and isinstance(values.get("studies"), list) and len(values["studies"]) == 1:
            return {key: value for key, value in values.items() if key != "studies"} | values["studies"][0]
        return values


class Environment(Record):
    """conditions.json: machine and packages of a training; beside the record, not part of it.

    Attributes:
        packages: name → version; None where not installed.
        cpu_capability: ATen's name.
        onednn_isa: oneDNN's instruction set, as ONEDNN_MAX_CPU_ISA names it; None if unknown.
        variables: environment variables that the libraries read while loading; None where not set.
        modules: path → SHA-256 of imported files neither in custom/ nor of an installed package.
        weights_sha256: of the weights that the training produced.
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
    modules: dict[str, str] = Field(default_factory=dict, exclude_if=lambda modules: not modules)
    weights_sha256: str | None = None

    @classmethod
    def read_for_weights(cls, path: Path, digest: str) -> Self | None:
        """Read the conditions if they belong to these weights; None if they are missing or of another training.

        DVC's run cache restores the outputs of an earlier training, but not its conditions.
        """
        environment = cls.read(path) if path.exists() else None
        return environment if environment and environment.weights_sha256 == digest else None


class Champion(Record):
    """champion.json: the best completed run, None where every run diverged, and the metric that chose it."""

    champion: str | None
    chosen_by: str
    validation_accuracy: float | None
    test_accuracy: float | None


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows, the header first, as comma-separated values.

    Raises:
        StorageError: the file cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    files.write_atomic(path, text.getvalue().encode())


def _round_to_float32(loss: float) -> float | None:
    """Return the shortest decimal that rounds to the same float32; None if not finite."""
    return float(str(np.float32(loss))) if math.isfinite(loss) else None


MODELS_FOLDER = Path("models")
RUNS_FOLDER = Path("runs")
REPORTS_FOLDER = Path("reports")
TUNING_FOLDER = Path("tuning")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Paths of one run's files.

    Attributes:
        folder: of the pipeline.
    """

    folder: Path
    optimizer: str
    seed: int

    @classmethod
    def from_id(cls, folder: Path, run: str) -> Self:
        """Return the files of the run with an id such as `adam-0`."""
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
        """Path of the `TrainRecord`."""
        return self.folder / RUNS_FOLDER / self.id / "train.json"

    @property
    def test(self) -> Path:
        """Path of the `EvalRecord`."""
        return self.folder / RUNS_FOLDER / self.id / "test.json"

    @property
    def predictions(self) -> Path:
        """Path of the CSV file with one line per test image."""
        return self.folder / RUNS_FOLDER / self.id / "predictions.csv"

    @property
    def environment(self) -> Path:
        """Path of the `Environment`."""
        return self.folder / RUNS_FOLDER / self.id / "conditions.json"


@dataclasses.dataclass(frozen=True)
class TuningFiles:
    """Paths of the files of the search that chooses the values of one run.

    Attributes:
        folder: of the pipeline.
        has_older_layout: whether they are those of an earlier version, which had one folder for all seeds.
    """

    folder: Path
    optimizer: str
    seed: int
    has_older_layout: bool = False

    @classmethod
    def find(cls, folder: Path, optimizer: str, seed: int, revision: "Revision | None" = None) -> Self:
        """Return the files of the run's search, or those of an earlier version's layout if only they exist."""
        own = cls(folder, optimizer, seed)
        older = dataclasses.replace(own, has_older_layout=True)
        if revision is None:
            return older if older.choice.exists() and not own.choice.exists() else own
        return older if revision.read(older.choice) and not revision.read(own.choice) else own

    @property
    def stage(self) -> str:
        """Name of the stage that writes them."""
        return f"tune@{self._name}"

    @property
    def choice(self) -> Path:
        """Path of the `Choice`."""
        return self.folder / TUNING_FOLDER / self._name / "choice.json"

    @property
    def trials(self) -> Path:
        """Path of the `TrialsRecord`."""
        return self.folder / TUNING_FOLDER / self._name / "trials.json"

    @property
    def environment(self) -> Path:
        """Path of the `Environment` of the trials that were trained last, which is no part of the record."""
        return self.folder / TUNING_FOLDER / self._name / "conditions.json"

    @property
    def _name(self) -> str:
        return self.optimizer if self.has_older_layout else format_run_id(self.optimizer, self.seed)


def load_chosen_config(config: Config, folder: Path, name: str, seed: int) -> tuple[Config, Choice | None]:
    """Return the configuration with the values that were chosen for the run with this seed, and the file they are from.

    Returns:
        the configuration as it is, and None, if the optimizer has no range.

    Raises:
        RecordError: choice.json is missing, damaged, or belongs to another entry.
    """
    spec, path = config.get_optimizer(name), TuningFiles.find(folder, name, seed).choice
    if not spec.ranges:
        return config, None
    choice = Choice.read(path)
    entry = OptimizerSpec.model_validate(choice.entry)
    if entry.ranges or entry.class_ != spec.class_:
        raise RecordError(f"{path}: is of another entry than params.yaml has: run `dvc repro`")
    return config.model_copy(update={"optimizers": config.optimizers | {name: entry}}), choice


_KEPT_ENVIRONMENTS = Path(".optlab") / "conditions"


def keep_environment(run: RunFiles) -> None:
    """Copy a run's conditions to .optlab/, under the digest of its weights, before another training replaces them.

    Raises:
        RecordError: the conditions are damaged.
        StorageError: the copy cannot be written.
    """
    digest = Environment.read(run.environment).weights_sha256 if run.environment.exists() else None
    if digest:
        files.write_atomic(_get_kept_path(digest), run.environment.read_bytes())


def restore_environment(run: RunFiles) -> None:
    """Restore the conditions of a run's weights from .optlab/, or keep those in place if they belong to the weights.

    DVC's run cache restores a training's outputs, and conditions are not among them.

    Raises:
        RecordError: a file of the run's record is missing or damaged.
        StorageError: a file cannot be written.
    """
    digest = TrainRecord.read(run.training).weights_sha256
    if Environment.read_for_weights(run.environment, digest):
        keep_environment(run)
    elif _get_kept_path(digest).is_file():
        files.write_atomic(run.environment, _get_kept_path(digest).read_bytes())


def _get_kept_path(digest: str) -> Path:
    return repository.get_state_root() / _KEPT_ENVIRONMENTS / f"{digest}.json"
