"""All runs of params.yaml side by side: figures per optimizer, and what they allow to be said."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from optlab.config.parameters import Config
from optlab.record.contents import Conditions, Evaluated, Status, Trained
from optlab.record.runs import RunFiles
from optlab.results import origin
from optlab.system.errors import RecordError


@dataclass(frozen=True)
class Run:
    """One run's record as it was written; its conditions are None where none are recorded for these weights."""

    files: RunFiles
    trained: Trained
    tested: Evaluated
    conditions: Conditions | None = None

    @property
    def status(self) -> Status:
        """`diverged` if the training or the evaluation did."""
        return "diverged" if "diverged" in (self.trained.status, self.tested.status) else "completed"


@dataclass(frozen=True)
class Figure:
    """A mean over runs, with the sample standard deviation (None for one run)."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Row:
    """One optimizer over all its seeds. A figure is None where a run has none: one diverged, say."""

    optimizer: str
    statuses: tuple[str, ...]
    validation_accuracy: Figure | None
    validation_loss: Figure | None
    train_loss: Figure | None
    test_accuracy: Figure | None
    test_loss: Figure | None
    calibration_error: Figure | None

    @property
    def status(self) -> str:
        """`completed`, or how many of the runs diverged."""
        bad = self.statuses.count("diverged")
        return (
            "completed"
            if not bad
            else "diverged"
            if bad == len(self.statuses)
            else f"{bad} of {len(self.statuses)} diverged"
        )


@dataclass(frozen=True)
class Comparison:
    """Rows from the best to the worst, all runs in the order of params.yaml, and the best run.

    Attributes:
        chosen_by: the figure that orders them: validation accuracy, or training loss without a validation split.
        champion: the completed run with the best such figure; None if every run diverged.
        mixture: what the runs were not all made under, as `origin.mixture` has it.
    """

    config: Config
    rows: list[Row]
    runs: list[Run]
    chosen_by: str
    champion: Run | None
    mixture: dict[str, dict[str, list[str]]] = field(default_factory=dict)


def collect(config: Config, folder: Path) -> Comparison:
    """Read the record of every run that params.yaml names.

    Raises:
        RecordError: a file of the record is missing, damaged, or of a run under other parameters.
    """
    validated = config.data.validation_size > 0
    chosen_by = "validation_accuracy" if validated else "train_loss"
    runs = [_read(RunFiles(folder, name, seed), chosen_by) for name, seed in config.runs()]
    rows = [_row(name, [run for run in runs if run.files.optimizer == name]) for name in config.optimizers]
    sign = -1 if validated else 1

    def order(figure: Figure | None) -> tuple[bool, float]:
        return (figure is None, sign * figure.mean if figure else 0.0)

    rows.sort(key=lambda row: order(getattr(row, chosen_by)))
    completed = [run for run in runs if run.status == "completed"]
    champion = min(completed, key=lambda run: sign * getattr(run.trained, chosen_by), default=None)
    made_under = {run.files.id: run.conditions for run in runs}
    mixture = origin.mixture(made_under, portable=config.training.numerics == "portable")
    return Comparison(config, rows, runs, chosen_by, champion, mixture)


def made_elsewhere(config: Config, folder: Path, here: Conditions) -> list[str]:
    """A sentence for each difference between the conditions of recorded runs and those here, with what to do."""
    groups: dict[str, list[str]] = {}
    for name, seed in config.runs():
        files = RunFiles(folder, name, seed)
        if not files.training.exists():
            continue
        recorded = Conditions.of_weights(files.conditions, Trained.read(files.training).weights_sha256)
        if recorded is None:
            groups.setdefault("under conditions that are not recorded", []).append(files.id)
            continue
        found = origin.changed(recorded, here, config.training.numerics == "portable")
        if found:
            parts = [f"{origin.title(key)} {then}, here {now}" for key, (then, now) in found.items()]
            groups.setdefault(f"with {'; '.join(parts)}", []).append(files.id)
    return [
        f"{', '.join(runs)}: recorded {how}: `dvc repro -f -s {' '.join(f'train@{run}' for run in runs)}`, then "
        f"`dvc repro`, trains {'them' if len(runs) > 1 else 'it'} again here"
        for how, runs in groups.items()
    ]


def verdict(compared: Comparison) -> str:
    """One or two sentences: which optimizer came first, and what that is worth."""
    rows, n = compared.rows, len(compared.config.seeds)
    first = rows[0]
    figure: Figure | None = getattr(first, compared.chosen_by)
    if figure is None or compared.champion is None:
        return "No optimizer completed all its runs: there is nothing to choose."
    what = compared.chosen_by.replace("_", " ")
    value = f"{figure.mean:.2%}" if "accuracy" in what else f"{figure.mean:.4f}"
    text = f"{first.optimizer} has the best {what}, {value} (n = {n})."
    second = getattr(rows[1], compared.chosen_by) if len(rows) > 1 else None
    if second is None:
        return text
    if figure.sd is None:
        return (
            f"{text} With one seed each, this cannot tell the optimizer's part from the seed's: "
            f"add seeds in params.yaml before you rely on a small difference."
        )
    gap = abs(figure.mean - second.mean)
    spread = f"the standard deviation over seeds is {figure.sd:.2g}"
    return f"{text} The next, {rows[1].optimizer}, is {gap:.4g} away; {spread}."


def _read(files: RunFiles, chosen_by: str) -> Run:
    trained = Trained.read(files.training)
    conditions = Conditions.of_weights(files.conditions, trained.weights_sha256)
    run = Run(files, trained, Evaluated.read(files.test), conditions)
    if run.status == "completed" and getattr(run.trained, chosen_by) is None:
        what = chosen_by.replace("_", " ")
        raise RecordError(f"{files.training}: has no {what}: it is of other parameters: run `dvc repro`")
    return run


def _row(name: str, runs: list[Run]) -> Row:
    def figure(part: str, key: str) -> Figure | None:
        values = [getattr(getattr(run, part), key) for run in runs]
        if any(value is None for value in values) or any(run.status == "diverged" for run in runs):
            return None
        sd = statistics.stdev(values) if len(values) > 1 else None
        return Figure(statistics.fmean(values), sd)

    return Row(
        name,
        tuple(run.status for run in runs),
        figure("trained", "validation_accuracy"),
        figure("trained", "validation_loss"),
        figure("trained", "train_loss"),
        figure("tested", "test_accuracy"),
        figure("tested", "test_loss"),
        figure("tested", "expected_calibration_error"),
    )
