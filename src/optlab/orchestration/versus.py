"""One optimizer beside those that a study has on record, and which of these were made otherwise than it.

Its pipeline is one that `challenge` has written: its params.yaml begins with the challenger, and what follows there are
optimizers of the study that are trained again. Importing this costs no torch.
"""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML, YAMLError

from optlab.analysis import environment_diff
from optlab.config import loader
from optlab.orchestration.dvc_lock import DvcLock
from optlab.records import Environment, RunFiles, TrainRecord, TuningFiles, TuningResult
from optlab.schema.parameters import PARAMS_FILE, Config, format_count, format_run_id
from optlab.system.errors import ConfigError, RecordError
from optlab.system.files import compute_md5
from optlab.tuning import selection

if TYPE_CHECKING:
    from optlab.analysis.comparison import Comparison

_CODE_DEPENDENCY = re.compile(r"- path: ((?:\.\./)+(?:src|pipeline)/\S+)\n      hash: md5\n      md5: (\S+)\n")
_RUN_STAGES = ("train", "evaluate")


def parse_yaml(text: str) -> Any:
    """The values of a YAML text of this repository's."""
    return YAML(typ="safe", pure=True).load(text)


def find_study(folder: Path) -> Path | None:
    """The study that the pipeline in a folder compares with; None where it is one of another kind."""
    try:
        stages = parse_yaml((folder / "dvc.yaml").read_text("utf-8"))["stages"]
        _, script, study = shlex.split(stages["compare"]["cmd"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError, YAMLError):  # not one that was written here
        return None
    return folder.parent / Path(study).name if script.endswith("pipeline/versus.py") else None


def check_study(study: Path) -> Config:
    """What a study compares, whose record is complete and of its params.yaml as it is now.

    Raises:
        ConfigError: its params.yaml cannot be used.
        RecordError: its record is incomplete, or of other parameters.
    """
    config = loader.load(study / PARAMS_FILE)
    current_params = parse_yaml((study / PARAMS_FILE).read_text(encoding="utf-8"))
    locked = DvcLock(study / "dvc.lock", []).read_entries()
    for name in config.optimizers:
        entry = locked.get(f"tune@{name}")
        if entry is None:
            raise RecordError(f"{study}: has no record of {name} yet: `optlab repro` there completes it")
        changed = _list_changed_parameters(parse_yaml(entry)[f"tune@{name}"], current_params)
        if changed:
            raise RecordError(
                f"{study / PARAMS_FILE}: {changed[0]} is another than in its record: `optlab repro` there brings it "
                f"up to "
                f"date"
            )
        files = [TuningFiles(study, name).choice, TuningFiles(study, name).trials]
        run_files = [RunFiles(study, name, seed) for seed in config.seeds]
        files += [path for each in run_files for path in (each.training, each.test)]
        missing = next((path for path in files if not path.exists()), None)
        if missing:
            raise RecordError(f"{missing}: is missing: `optlab repro` in {study} completes its record")
    return config


def _list_changed_parameters(entry: dict[str, Any], current_params: dict[str, Any]) -> list[str]:
    """The keys of params.yaml that a stage depends on, and that have changed since it ran.

    Args:
        entry: of the stage in dvc.lock.
        current_params: the values of params.yaml.
    """
    recorded = entry.get("params", {}).get(PARAMS_FILE.name, {})
    present = current_params | {f"optimizers.{name}": each for name, each in current_params["optimizers"].items()}
    return [key for key, value in recorded.items() if present.get(key) != value]


def check_trained(config: Config, folder: Path) -> None:
    """Refuse a record whose runs were trained with other parameters or tuned values than there are now, by dvc.lock.

    Raises:
        RecordError: it is such a record.
    """
    params_path = folder / PARAMS_FILE
    current_params = parse_yaml(params_path.read_text(encoding="utf-8"))
    locked = DvcLock(folder / "dvc.lock", []).read_entries()
    for name, spec in config.optimizers.items():
        ignored = {"seeds"} if spec.ranges else {"seeds", "tuning"}  # which decide no run that is not tuned
        for stage in (f"tune@{name}", *(f"train@{format_run_id(name, seed)}" for seed in config.seeds)):
            entry = parse_yaml(locked[stage])[stage] if stage in locked else {}
            changed = [key for key in _list_changed_parameters(entry, current_params) if key not in ignored]
            if changed:
                raise RecordError(f"{params_path}: {changed[0]} was changed since {name} was trained: run `dvc repro`")
            for each in entry.get("deps", ()):
                path = folder / each["path"]
                if path == TuningFiles(folder, name).choice and compute_md5(path) != each["md5"]:
                    raise RecordError(f"{path}: was changed since {name} was trained: run `dvc repro`")


def collect_comparison(config: Config, folder: Path) -> "Comparison":
    """What the pipeline in a folder compares: its own runs, or the first optimizer's with those of a study.

    Raises:
        ConfigError, RecordError: as for `collect_with_study` here and in `analysis.comparison`.
    """
    from optlab.analysis import comparison

    study = find_study(folder)
    return collect_with_study(config, folder, study) if study else comparison.collect(config, folder)


def collect_with_study(config: Config, folder: Path, study: Path) -> "Comparison":
    """The challenger beside the study's optimizers.

    Args:
        config: of the pipeline in `folder`.

    Raises:
        ConfigError: the pipeline is not of the study as it is now.
        RecordError: a record is incomplete, or the study's is of other parameters than its params.yaml has.
    """
    from optlab.analysis import comparison

    base, (challenger, *retrained) = check_study(study), config.optimizers
    if config.model_copy(update={"optimizers": base.optimizers}) != base:
        raise ConfigError(f"{folder / PARAMS_FILE}: is not what {study / PARAMS_FILE} has: repeat `optlab versus`")
    merged = base.model_copy(update={"optimizers": {challenger: config.optimizers[challenger]} | base.optimizers})
    folders = {
        name: comparison.RecordFolders(folder if name in retrained else study, study) for name in base.optimizers
    }
    comparison_with_study = comparison.collect(merged, folder, folder_overrides=folders)
    notes = [_format_note(how, runs, challenger) for how, runs in find_differences(config, folder, study).items()]
    return dataclasses.replace(
        comparison_with_study, challenger=challenger, differing_conditions={}, notes=tuple(notes)
    )


def _format_note(difference: str, runs: list[str], challenger: str) -> str:
    names = list(dict.fromkeys(run.rpartition("-")[0] for run in runs))
    remedy = ": `optlab versus` with `--again` trains such runs of the study here" if challenger not in names else ""
    return (
        f"{', '.join(names)} ({format_count(len(runs), 'run')}) {'was' if len(names) == 1 else 'were'} recorded "
        f"otherwise "
        f"than the first run of {challenger}, so a difference need not be the optimizer's: {difference}{remedy}."
    )


def list_differing_optimizers(config: Config, folder: Path, study: Path) -> list[str]:
    """The study's optimizers with a run that was made otherwise than the challenger's first one, in its order."""
    found = {run.rpartition("-")[0] for runs in find_differences(config, folder, study).values() for run in runs}
    return [name for name in loader.load(study / PARAMS_FILE).optimizers if name in found]


def find_differences(config: Config, folder: Path, study: Path) -> dict[str, list[str]]:
    """How runs were made otherwise than the challenger's first one → which: by conditions, or by code.

    Those that are trained again count as they are in `folder`.
    """
    base, (challenger, *retrained) = loader.load(study / PARAMS_FILE), config.optimizers
    portable, seed = config.training.numerics == "portable", config.seeds[0]
    own_conditions = _read_conditions(folder, challenger, seed)
    locked = {place: DvcLock(place / "dvc.lock", []).read_entries() for place in (study, folder)}
    own_code = _list_code_digests(locked[folder], challenger, seed)
    runs_by_difference: dict[str, list[str]] = {}
    for name in (challenger, *base.optimizers):
        run_folder = folder if name in (challenger, *retrained) else study
        modules = _list_changed_modules(base, study, name) if run_folder == study else []
        for each in config.seeds:
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
        if len(value) == 1:  # of conditions that are not recorded
            parts.append(f"{title} {value.get('theirs', 'recorded')}, not {value.get('own', 'recorded')}")
        else:
            parts.append(f"{title} {value['theirs']}, not {value['own']}")
    return parts


def _list_changed_modules(base: Config, study: Path, name: str) -> list[str]:
    """The modules of custom/ that an optimizer of the study uses, and that are others now."""
    recorded, now = (
        TuningResult.read(TuningFiles(study, name).choice).modules,
        selection.hash_modules(base.list_class_paths(name)),
    )
    return [path for path in recorded | now if recorded.get(path) != now.get(path)]


def _read_conditions(folder: Path, name: str, seed: int) -> Environment | None:
    run_files = RunFiles(folder, name, seed)
    return Environment.read_for_weights(run_files.environment, TrainRecord.read(run_files.training).weights_sha256)


def _list_code_digests(locked: dict[str, str], name: str, seed: int) -> dict[tuple[str, str], str]:
    """Stage and path → digest of the code that a run was trained and evaluated by."""
    return {
        (stage, path.lstrip("./")): digest
        for stage in _RUN_STAGES
        for path, digest in _CODE_DEPENDENCY.findall(locked.get(f"{stage}@{format_run_id(name, seed)}", ""))
    }
