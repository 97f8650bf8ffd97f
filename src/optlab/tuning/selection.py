"""Values chosen by a tuning: selection from the trials, and the files trials.json and choice.json."""

from pathlib import Path

from optlab import records
from optlab.records import StudyResult, TrialsRecord, TuningFiles, TuningResult
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system import repository, source_code
from optlab.tuning import search
from optlab.tuning.search import Trial


def select_values(spec: OptimizerSpec, trials: list[Trial], steps: int) -> StudyResult:
    """Select the best trial of a study that was trained to the end; it may be the default's.

    Args:
        steps: of a whole training.
    """
    best = search.find_best(trials, steps)
    if best is None:
        return StudyResult(entry=dump_entry(spec.replace_ranges({})))
    return StudyResult(
        entry=dump_entry(spec.replace_ranges(best.values)),
        trial=None if best.index == search.DEFAULT_INDEX else best.index,
        validation_accuracy=best.validations[-1].accuracy,
        at_edge=search.find_ranges_at_edge(spec.ranges, best, trials),
    )


def write_untuned(config: Config, folder: Path, name: str) -> None:
    """Write the entry of an optimizer without a range as its choice.

    Raises:
        StorageError: it cannot be written.
    """
    entry = StudyResult(entry=dump_entry(config.get_optimizer(name)))
    write(TuningFiles(folder, name), [entry], hash_modules(config.list_class_paths(name)), None)


def write(
    tuning_files: TuningFiles,
    studies: list[StudyResult],
    modules: dict[str, str],
    trials: list[records.TrialRecord] | None,
    sensitivity: list[records.TrialRecord] | None = None,
) -> None:
    """Write trials.json and choice.json.

    Args:
        modules: as `hash_modules` returns them.
        trials: None for an optimizer without a range.

    Raises:
        StorageError: one cannot be written.
    """
    TrialsRecord(trials=trials or [], sensitivity=sensitivity or []).write(tuning_files.trials)
    TuningResult(is_tuned=trials is not None, studies=studies, modules=modules).write(tuning_files.choice)


def get_environment_path(folder: Path, name: str) -> Path:
    """Return the path of the environment of the trials that were trained last, which is no part of the record."""
    return TuningFiles(folder, name).choice.with_name("conditions.json")


def dump_entry(spec: OptimizerSpec) -> dict[str, object]:
    """Return the entry as params.yaml has it, without defaults."""
    return spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def hash_modules(class_paths: list[str]) -> dict[str, str]:
    """Return path → SHA-256 of the modules of custom/ that class paths lead to, and of those that they import."""
    user_modules = source_code.find_user_modules(class_paths)
    return source_code.hash_files(name for name in user_modules if name.is_relative_to(repository.CUSTOM))
