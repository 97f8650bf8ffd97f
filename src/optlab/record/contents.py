"""The record, typed: the same bytes every time. No times, no host names, no ids.

A key that a later version has added has a default, so that what an earlier one wrote stays readable.
"""

import json
import math
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optlab.system import files
from optlab.system.errors import RecordError
from optlab.system.revision import Revision

Status = Literal["completed", "diverged"]
TrialStatus = Literal["completed", "stopped", "diverged", "failed"]


class Contents(BaseModel):
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
    def at(cls, revision: Revision, path: Path) -> Self | None:
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
        files.write(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


class Epoch(Contents):
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


class Validation(Contents):
    """A look at the validation split.

    Attributes:
        step: after how many steps of the run.
        loss: mean cross entropy in nats; None if a logit was not finite.
        accuracy: a fraction; None as the loss.
    """

    step: int
    loss: float | None
    accuracy: float | None


class Trained(Contents):
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
    history: list[Epoch]
    validations: list[Validation] = Field(default_factory=list)
    step_losses: list[list[float | None]]

    @property
    def looks(self) -> list[Validation]:
        """The validations; in records of older versions those at the ends of epochs, which were all there were."""
        ends = accumulate(len(losses) for losses in self.step_losses)
        return self.validations or [
            Validation(step=step, loss=epoch.validation_loss, accuracy=epoch.validation_accuracy)
            for epoch, step in zip(self.history, ends, strict=False)
            if epoch.validation_accuracy is not None
        ]

    @classmethod
    def of(cls, status: Status, history: list[Epoch], validations: list[Validation], step_losses: list[list[float]],
           hyperparameters: dict[str, Any], weights_sha256: str) -> Self:  # fmt: skip
        """The record of a finished training."""
        last = history[-1]
        return cls(
            status=status, epochs=len(history), train_loss=last.train_loss, validation_loss=last.validation_loss,
            validation_accuracy=last.validation_accuracy, weights_sha256=weights_sha256,
            hyperparameters=[(key, str(value)) for key, value in hyperparameters.items()], history=history,
            validations=validations, step_losses=[[_shortest(loss) for loss in losses] for losses in step_losses],
        )  # fmt: skip


class Evaluated(Contents):
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


class Trial(Contents):
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
    looks: list[Validation]
    sought: int | None = None
    key: str


class Trials(Contents):
    """trials.json: all of them, none where nothing was tuned.

    Attributes:
        sensitivity: those of the grid over the learning rate; their index is that of the grid's point.
    """

    trials: list[Trial]
    sensitivity: list[Trial] = Field(default_factory=list)


class Chosen(Contents):
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


class Choice(Contents):
    """choice.json: what the runs of an optimizer are trained with. It does not grow with the number of trials.

    Attributes:
        is_tuned: whether the entry had a range.
        studies: one, or one for each independent tuning.
        modules: path → SHA-256 of those of custom/ that the runs use.
    """

    is_tuned: bool
    studies: list[Chosen]
    modules: dict[str, str]


class Conditions(Contents):
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
    def of_weights(cls, path: Path, digest: str) -> Self | None:
        """Those under which these weights came out; None if none are recorded there, or those of another training.

        DVC's run cache brings back the outputs of an earlier run, and leaves the conditions of the last one.
        """
        if not path.exists():
            return None
        found = cls.read(path)
        return found if found.weights_sha256 == digest else None


class Champion(Contents):
    """champion.json: the best completed run, None where every run diverged, and the figure that it was chosen by."""

    champion: str | None
    chosen_by: str
    validation_accuracy: float | None
    test_accuracy: float | None


def _shortest(loss: float) -> float | None:
    """The shortest decimal that names the same float32; None if it is not finite."""
    return float(str(np.float32(loss))) if math.isfinite(loss) else None
