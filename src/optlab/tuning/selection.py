"""Values chosen by a search: selection from the trials, and the files trials.json and choice.json."""

from pathlib import Path

from optlab import records
from optlab.records import Choice, TrialsRecord, TuningFiles
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system import repository, source_code
from optlab.tuning import search
from optlab.tuning.search import Trial


def select_values(spec: OptimizerSpec, trials: list[Trial], steps: int, modules: dict[str, str]) -> Choice:
    """Select the best trial of a search that was trained to the end; it may be the default's.

    Args:
        steps: of a whole training.
        modules: as `hash_modules` returns them.
    """
    best = search.find_best(trials, steps)
    if best is None:
        return Choice(is_tuned=True, entry=dump_entry(spec.replace_ranges({})), modules=modules)
    return Choice(
        is_tuned=True,
        entry=dump_entry(spec.replace_ranges(best.values)),
        trial=None if best.index == search.DEFAULT_INDEX else best.index,
        validation_accuracy=best.validations[-1].accuracy,
        at_edge=search.find_ranges_at_edge(spec.ranges, best, trials),
        modules=modules,
    )


def write_untuned(config: Config, folder: Path, name: str, seed: int) -> None:
    """Write the entry of an optimizer without a range as the choice for a run.

    Raises:
        StorageError: it cannot be written.
    """
    modules = hash_modules(config.list_class_paths(name))
    choice = Choice(is_tuned=False, entry=dump_entry(config.get_optimizer(name)), modules=modules)
    write(TuningFiles(folder, name, seed), choice, [])


def write(
    tuning_files: TuningFiles,
    choice: Choice,
    trials: list[records.TrialRecord],
    sensitivity: list[records.TrialRecord] | None = None,
) -> None:
    """Write trials.json and choice.json.

    Args:
        trials: none for an optimizer without a range.

    Raises:
        StorageError: one cannot be written.
    """
    TrialsRecord(trials=trials, sensitivity=sensitivity or []).write(tuning_files.trials)
    choice.write(tuning_files.choice)


def dump_entry(spec: OptimizerSpec) -> dict[str, object]:
    """Return the entry as params.yaml has it, without defaults."""
    return spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def hash_modules(class_paths: list[str]) -> dict[str, str]:
    """Return path → SHA-256 of the modules of custom/ that class paths lead to, and of those that they import."""
    user_modules = source_code.find_user_modules(class_paths)
    return source_code.hash_files(name for name in user_modules if name.is_relative_to(repository.CUSTOM))
