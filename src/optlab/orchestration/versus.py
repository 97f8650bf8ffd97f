"""Comparison of one optimizer, the challenger, with a study's record, and checks of that record.

`versus_pipeline` writes such a pipeline: its params.yaml has the challenger first, then the study's optimizers that are
trained again. The pipeline's stage `compare` depends on this module; importing it imports neither torch nor DVC.
"""

import dataclasses
import functools
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ruamel.yaml import YAML, YAMLError

from optlab.analysis import environment_diff
from optlab.config import loader
from optlab.orchestration import attempts
from optlab.orchestration.attempts import ATTEMPTS_FILE, Attempt
from optlab.orchestration.dvc_lock import DvcLock
from optlab.records import Choice, Environment, RunFiles, TrainRecord, TuningFiles
from optlab.schema.parameters import PARAMS_FILE, Config, format_count, format_run_id
from optlab.system.errors import ConfigError, RecordError
from optlab.system.files import compute_md5
from optlab.system.text import format_place, parse_yaml
from optlab.tuning import selection

if TYPE_CHECKING:
    from optlab.analysis.comparison import Comparison

_CODE_DEPENDENCY = re.compile(r"- path: ((?:\.\./)*(?:src|pipeline)/\S+)\n      hash: md5\n      md5: (\S+)\n")
_RUN_STAGES = ("train", "evaluate")


@functools.cache
def _parse_entry(text: str) -> dict[str, Any]:
    """Return the content of an entry of dvc.lock: with libyaml, if it is there, which takes a fifth of the time.

    In records of earlier versions, the runs of an optimizer share the entry of its search.
    """
    entry: dict[str, Any]
    (entry,) = YAML(typ="safe").load(text).values()
    return entry


class StudyReference(NamedTuple):
    """Study that a pipeline compares with, and the number of its attempt there, as in the command of `compare`."""

    study: Path
    attempt: int


def find_study(folder: Path) -> StudyReference | None:
    """Return what the pipeline in a folder compares with; None if it compares its own runs."""
    try:
        stages = parse_yaml((folder / "dvc.yaml").read_text("utf-8"))["stages"]
        return parse_compare_command(stages["compare"]["cmd"], folder)
    except (OSError, KeyError, TypeError, AttributeError, YAMLError):  # another kind of pipeline
        return None


def parse_compare_command(command: str, folder: Path) -> StudyReference | None:
    """Return what the command of the stage `compare` of the pipeline in a folder names; None for its own runs."""
    try:
        _, script, study, *number = shlex.split(command)
        attempt = int(number[0]) if number else 0  # written by an earlier version
    except ValueError:
        return None
    is_versus = script.endswith("pipeline/versus.py")
    return StudyReference(folder.parent / Path(study).name, attempt) if is_versus else None


def read_attempt(config: Config, folder: Path) -> Attempt:
    """Return the attempt of the pipeline in a folder, whose challenger is tuned.

    Raises:
        RecordError: the tuning's choice is missing or damaged.
    """
    challenger = next(iter(config.optimizers))
    choice = Choice.read(TuningFiles.find(folder, challenger, config.seeds[0]).choice)
    return attempts.make_attempt(config, challenger, choice.modules)


def begin_attempt(config: Config, folder: Path, reference: StudyReference) -> None:
    """Record the attempt of a pipeline that compares with a study, before its runs are trained.

    Raises:
        RecordError: the pipeline is of another attempt, or a file is missing or damaged.
        StorageError: the attempt cannot be written.
    """
    attempt = read_attempt(config, folder)
    _check_number(attempt, folder, reference)
    attempts.record(reference.study, attempt)


def _check_number(attempt: Attempt, folder: Path, reference: StudyReference) -> None:
    study, named = reference
    number = attempts.find_number(attempts.read(study), attempt)
    if number != named:
        raise RecordError(
            f"{folder / 'dvc.yaml'}: is of attempt {named}, but {attempt.challenger} as it is now is attempt {number} "
            f"by {study / ATTEMPTS_FILE}: repeat `optlab versus`"
        )


def check_study(study: Path) -> Config:
    """Check that a study's record is complete and belongs to its params.yaml, and return its configuration.

    Raises:
        ConfigError: its params.yaml cannot be used.
        RecordError: its record is incomplete, or belongs to other parameters.
    """
    config = loader.load(study / PARAMS_FILE)
    current_params = parse_yaml((study / PARAMS_FILE).read_text(encoding="utf-8"))
    locked = DvcLock(study / "dvc.lock", []).read_entries()
    for name, seed in config.list_runs():
        tuning_files, run_files = TuningFiles.find(study, name, seed), RunFiles(study, name, seed)
        stage = tuning_files.stage
        if stage not in locked:
            raise RecordError(f"{study}: has no record of {run_files.id} yet: `optlab repro` there completes it")
        changed = _list_changed_parameters(_parse_entry(locked[stage]), current_params)
        if changed:
            raise RecordError(
                f"{study / PARAMS_FILE}: {changed[0]} is another than in its record: `optlab repro` there brings it up "
                f"to date"
            )
        files = [tuning_files.choice, tuning_files.trials, run_files.training, run_files.test]
        missing = next((path for path in files if not path.exists()), None)
        if missing:
            raise RecordError(f"{missing}: is missing: `optlab repro` in {study} completes its record")
    return config


def _list_changed_parameters(entry: dict[str, Any], current_params: dict[str, Any]) -> list[str]:
    """Return the keys of params.yaml that a stage's entry in dvc.lock has with other values."""
    recorded = entry.get("params", {}).get(PARAMS_FILE.name, {})
    present = current_params | {f"optimizers.{name}": each for name, each in current_params["optimizers"].items()}
    return [key for key, value in recorded.items() if present.get(key) != value]


def check_trained(config: Config, folder: Path) -> None:
    """Check by dvc.lock that the runs were trained with the present parameters and tuned values.

    Raises:
        RecordError: they were not.
    """
    params_path = folder / PARAMS_FILE
    remedy = f"run `dvc repro`{format_place(folder)}"
    current_params = parse_yaml(params_path.read_text(encoding="utf-8"))
    locked = DvcLock(folder / "dvc.lock", []).read_entries()
    for name, seed in config.list_runs():
        ignored = {"seeds"} if config.optimizers[name].ranges else {"seeds", "tuning"}  # neither decides a run
        tuning_files = TuningFiles.find(folder, name, seed)
        for stage in (tuning_files.stage, f"train@{format_run_id(name, seed)}"):
            entry = _parse_entry(locked[stage]) if stage in locked else {}
            changed = [key for key in _list_changed_parameters(entry, current_params) if key not in ignored]
            if changed:
                raise RecordError(f"{params_path}: {changed[0]} was changed since {name} was trained: {remedy}")
            for each in entry.get("deps", ()):
                path = folder / each["path"]
                if path == tuning_files.choice and compute_md5(path) != each["md5"]:
                    raise RecordError(f"{path}: was changed since {name} was trained: {remedy}")


def collect_comparison(config: Config, folder: Path) -> "Comparison":
    """Collect what the pipeline in a folder compares: its own runs, or the challenger's with those of a study.

    Raises:
        ConfigError, RecordError: as for `collect_with_study` and `comparison.collect`.
    """
    from optlab.analysis import comparison

    reference = find_study(folder)
    return collect_with_study(config, folder, reference) if reference else comparison.collect(config, folder)


def collect_with_study(config: Config, folder: Path, reference: StudyReference) -> "Comparison":
    """Collect the comparison of the challenger with the study's optimizers.

    Args:
        config: of the pipeline in `folder`.

    Raises:
        ConfigError: the pipeline does not match the study's params.yaml.
        RecordError: a record is incomplete, or the study's belongs to other parameters; or the pipeline is of another
            attempt.
    """
    from optlab.analysis import comparison
    from optlab.analysis.comparison import RecordFolders

    study, attempt = reference
    base, (challenger, *retrained) = check_study(study), config.optimizers
    is_valid = config.seeds == base.seeds or has_fresh_seeds(config, base)
    if not is_valid or config.model_copy(update={"optimizers": base.optimizers, "seeds": base.seeds}) != base:
        raise ConfigError(f"{folder / PARAMS_FILE}: is not what {study / PARAMS_FILE} has: repeat `optlab versus`")
    _check_number(read_attempt(config, folder), folder, reference)
    merged = base.model_copy(update={"optimizers": {challenger: config.optimizers[challenger]} | base.optimizers})
    own = RecordFolders(folder, folder, tuple(config.seeds))
    again = own if config.tuning.per_seed else own._replace(tuning=study, tuning_seeds=tuple(base.seeds))
    folders = {name: RecordFolders(study, study) for name in base.optimizers}
    folders |= dict.fromkeys(retrained, again) | {challenger: own}
    notes = [_format_note(how, runs, challenger) for how, runs in find_differences(config, folder, study).items()]
    return dataclasses.replace(
        comparison.collect(merged, folder, folder_overrides=folders),
        challenger=challenger,
        differing_conditions={},
        notes=tuple(notes),
        attempt=attempt,
    )


def has_fresh_seeds(config: Config, base: Config) -> bool:
    """Return whether a pipeline's runs have other seeds than the study's, as many, by `--fresh-seeds`."""
    return len(config.seeds) == len(base.seeds) and set(config.seeds).isdisjoint(base.seeds)


def _format_note(difference: str, runs: list[str], challenger: str) -> str:
    names = list(dict.fromkeys(run.rpartition("-")[0] for run in runs))
    remedy = ": `optlab versus` with `--again` trains such runs of the study here" if challenger not in names else ""
    which = f"{', '.join(names)} ({format_count(len(runs), 'run')}) {'was' if len(names) == 1 else 'were'}"
    return (
        f"{which} recorded otherwise than the first run of {challenger}, so a difference need not be the optimizer's: "
        f"{difference}{remedy}."
    )


def list_differing_optimizers(config: Config, folder: Path, study: Path) -> list[str]:
    """Return the study's optimizers with a run that differs from the challenger's first one, in the study's order."""
    differing = {run.rpartition("-")[0] for runs in find_differences(config, folder, study).values() for run in runs}
    return [name for name in loader.load(study / PARAMS_FILE).optimizers if name in differing]


def find_differences(config: Config, folder: Path, study: Path) -> dict[str, list[str]]:
    """Return difference → runs whose environment or code differs so from the challenger's first run.

    Optimizers that are trained again count with their runs in `folder`.
    """
    base, (challenger, *retrained) = loader.load(study / PARAMS_FILE), config.optimizers
    portable, seed = config.training.numerics == "portable", config.seeds[0]
    own_conditions = _read_conditions(folder, challenger, seed)
    locked = {each: DvcLock(each / "dvc.lock", []).read_entries() for each in (study, folder)}
    own_code = _list_code_digests(locked[folder], challenger, seed)
    runs_by_difference: dict[str, list[str]] = {}
    for name in (challenger, *base.optimizers):
        run_folder = folder if name in (challenger, *retrained) else study
        modules = _list_changed_modules(base, study, name) if run_folder == study else []
        for each in (base if run_folder == study else config).seeds:
            other_conditions = _read_conditions(run_folder, name, each)
            code = _list_code_digests(locked[run_folder], name, each)
            changed = dict.fromkeys(key[1] for key, digest in own_code.items() if code.get(key) != digest)
            parts = _describe_condition_differences(own_conditions, other_conditions, portable)
            parts += [f"{', '.join([*changed, *modules])} has changed since"] if changed or modules else []
            if parts:
                runs_by_difference.setdefault("; ".join(parts), []).append(format_run_id(name, each))
    return runs_by_difference


def _describe_condition_differences(own: Environment | None, theirs: Environment | None, portable: bool) -> list[str]:
    if own is None and theirs is None:
        return ["conditions not recorded of either"]
    differing = environment_diff.find_differing_conditions({"own": own, "theirs": theirs}, portable)
    parts = []
    for title, groups in differing.items():
        value = {run: text for text, runs in groups.items() for run in runs}
        if len(value) == 1:  # one of them has no recorded conditions
            parts.append(f"{title} {value.get('theirs', 'recorded')}, not {value.get('own', 'recorded')}")
        else:
            parts.append(f"{title} {value['theirs']}, not {value['own']}")
    return parts


def _list_changed_modules(base: Config, study: Path, name: str) -> list[str]:
    """Return the modules of custom/ that an optimizer of the study uses and that have changed."""
    recorded = Choice.read(TuningFiles.find(study, name, base.seeds[0]).choice).modules
    now = selection.hash_modules(base.list_class_paths(name))
    return [path for path in recorded | now if recorded.get(path) != now.get(path)]


def _read_conditions(folder: Path, name: str, seed: int) -> Environment | None:
    run_files = RunFiles(folder, name, seed)
    return Environment.read_for_weights(run_files.environment, TrainRecord.read(run_files.training).weights_sha256)


def _list_code_digests(locked: dict[str, str], name: str, seed: int) -> dict[tuple[str, str], str]:
    """Return (stage, path) → digest of the code that trained and evaluated a run."""
    return {
        (stage, path.lstrip("./")): digest
        for stage in _RUN_STAGES
        for path, digest in _CODE_DEPENDENCY.findall(locked.get(f"{stage}@{format_run_id(name, seed)}", ""))
    }
