"""What the runs of an optimizer are trained with: its entry, settled, and the modules of one's own that it uses."""

from pathlib import Path

from optlab import records
from optlab.records import StudyResult, TrialsRecord, TuningFiles, TuningResult
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system import repository, source_code
from optlab.tuning import search
from optlab.tuning.search import Trial


def select_values(spec: OptimizerSpec, trials: list[Trial], steps: int) -> StudyResult:
    """What a study of these trials has come to: the best of those that were trained to the end, the default included.

    Args:
        steps: of a whole training.
    """
    found = search.find_best(trials, steps)
    if found is None:
        return StudyResult(entry=dump_entry(spec.replace_ranges({})))
    return StudyResult(
        entry=dump_entry(spec.replace_ranges(found.values)),
        trial=None if found.index == search.DEFAULT_INDEX else found.index,
        validation_accuracy=found.validations[-1].accuracy,
        at_edge=search.find_ranges_at_edge(spec.ranges, found, trials),
    )


def write_untuned(config: Config, folder: Path, name: str) -> None:
    """Write the entry of an optimizer without a range, as it is.

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
    """Write both files; `trials` is None where nothing was tuned.

    Raises:
        StorageError: one cannot be written.
    """
    TrialsRecord(trials=trials or [], sensitivity=sensitivity or []).write(tuning_files.trials)
    TuningResult(is_tuned=trials is not None, studies=studies, modules=modules).write(tuning_files.choice)


def get_environment_path(folder: Path, name: str) -> Path:
    """Where it is kept what the machine decided about the trials that were trained last: beside the record, no part."""
    return TuningFiles(folder, name).choice.with_name("conditions.json")


def dump_entry(spec: OptimizerSpec) -> dict[str, object]:
    """As params.yaml has it, without what is left out there."""
    return spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def hash_modules(class_paths: list[str]) -> dict[str, str]:
    """Return path → SHA-256 of the modules of custom/ that class paths lead to, and of those that they import."""
    user_modules = source_code.find_user_modules(class_paths)
    return source_code.hash_files(name for name in user_modules if name.is_relative_to(repository.CUSTOM))
