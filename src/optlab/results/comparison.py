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


_ONE_SEED = (
    "With one seed each, this cannot tell the optimizer's part from the seed's: add seeds in params.yaml before you "
    "rely on a small difference"
)


def verdict(compared: Comparison) -> str:
    """A few sentences: which optimizer came first, by how much, and what that is worth."""
    first, *others = compared.rows
    best: Figure | None = getattr(first, compared.chosen_by)
    second: Figure | None = getattr(others[0], compared.chosen_by) if others else None
    if best is None:
        return _without_a_first(compared)
    what, percent = _words(compared)
    value = f"{_value(best.mean, percent)} (n = {len(first.statuses)})"
    place = f"has the best {what}, {value}" if others else f"is the only optimizer: {what} {value}"
    sentences = [f"{first.optimizer} {place}"]
    if others and second is None:
        sentences.append("No other optimizer completed all its runs")
    if best.sd is None:
        sentences += [_ONE_SEED] if others else []
    elif second is None or second.sd is None:
        sentences[-1] += f"; the standard deviation over seeds is {_distance(best.sd, percent)}"
    else:
        spreads = f"{_distance(best.sd, percent)} and {_distance(second.sd, percent)}"
        gap = _distance(abs(best.mean - second.mean), percent)
        sentences.append(
            f"The next, {others[0].optimizer}, is {gap} away; the standard deviations over seeds are {spreads}"
        )
    return " ".join(f"{sentence}." for sentence in sentences)


def _without_a_first(compared: Comparison) -> str:
    """The verdict where every optimizer has a run that diverged."""
    if compared.champion is None:
        return "No run completed: there is nothing to choose."
    what, percent = _words(compared)
    run, value = compared.champion.files.id, _value(getattr(compared.champion.trained, compared.chosen_by), percent)
    count = sum(each.status == "completed" for each in compared.runs)
    best = (
        f"The only run that completed is {run}, with a {what} of {value}."
        if count == 1
        else f"The best {what} of the {count} runs that completed is {value}, of {run}."
    )
    return f"No optimizer completed all its runs, so there is no verdict. {best}"


def _words(compared: Comparison) -> tuple[str, bool]:
    """What the figure that orders the runs is called, and whether it is shown in percent."""
    return compared.chosen_by.replace("_", " "), "accuracy" in compared.chosen_by


def _value(figure: float, percent: bool) -> str:
    return f"{figure:.2%}" if percent else f"{figure:.4f}"


def _distance(size: float, percent: bool) -> str:
    return f"{100 * size:.2f} points" if percent else f"{size:.4f}"


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
