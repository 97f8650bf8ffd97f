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

from optlab.config import reading
from optlab.config.parameters import PARAMS, Config, run_id
from optlab.execution.lockfile import LockFile
from optlab.record.contents import Choice, Conditions, Trained
from optlab.record.runs import RunFiles, TuningFiles
from optlab.reproduce.judgement import md5
from optlab.results import origin
from optlab.system.errors import ConfigError, RecordError
from optlab.system.wording import counted
from optlab.tuning import choice

if TYPE_CHECKING:
    from optlab.results.comparison import Comparison

_CODE = re.compile(r"- path: ((?:\.\./)+(?:src|pipeline)/\S+)\n      hash: md5\n      md5: (\S+)\n")
_STAGES = ("train", "evaluate")


def parsed(text: str) -> Any:
    """The values of a YAML text of this repository's."""
    return YAML(typ="safe", pure=True).load(text)


def study_of(folder: Path) -> Path | None:
    """The study that the pipeline in a folder compares with; None where it is one of another kind."""
    try:
        stages = parsed((folder / "dvc.yaml").read_text("utf-8"))["stages"]
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
    config = reading.load(study / PARAMS)
    now = parsed((study / PARAMS).read_text(encoding="utf-8"))
    locked = LockFile(study / "dvc.lock", []).entries()
    for name in config.optimizers:
        entry = locked.get(f"tune@{name}")
        if entry is None:
            raise RecordError(f"{study}: has no record of {name} yet: `optlab repro` there completes it")
        changed = _changed_parameters(parsed(entry)[f"tune@{name}"], now)
        if changed:
            raise RecordError(
                f"{study / PARAMS}: {changed[0]} is another than in its record: `optlab repro` there brings it up to "
                f"date"
            )
        files = [TuningFiles(study, name).choice, TuningFiles(study, name).trials]
        own = [RunFiles(study, name, seed) for seed in config.seeds]
        files += [path for each in own for path in (each.training, each.test)]
        missing = next((path for path in files if not path.exists()), None)
        if missing:
            raise RecordError(f"{missing}: is missing: `optlab repro` in {study} completes its record")
    return config


def _changed_parameters(entry: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys of params.yaml that a stage depends on, and that have changed since it ran.

    Args:
        entry: of the stage in dvc.lock.
        now: the values of params.yaml.
    """
    recorded = entry.get("params", {}).get(PARAMS.name, {})
    present = now | {f"optimizers.{name}": each for name, each in now["optimizers"].items()}
    return [key for key, value in recorded.items() if present.get(key) != value]


def check_trained(config: Config, folder: Path) -> None:
    """Refuse a record whose runs were trained with other parameters or tuned values than there are now, by dvc.lock.

    Raises:
        RecordError: it is such a record.
    """
    place = folder / PARAMS
    now = parsed(place.read_text(encoding="utf-8"))
    locked = LockFile(folder / "dvc.lock", []).entries()
    for name, spec in config.optimizers.items():
        ignored = {"seeds"} if spec.ranges else {"seeds", "tuning"}  # which decide no run that is not tuned
        for stage in (f"tune@{name}", *(f"train@{run_id(name, seed)}" for seed in config.seeds)):
            entry = parsed(locked[stage])[stage] if stage in locked else {}
            changed = [key for key in _changed_parameters(entry, now) if key not in ignored]
            if changed:
                raise RecordError(f"{place}: {changed[0]} was changed since {name} was trained: run `dvc repro`")
            for each in entry.get("deps", ()):
                path = folder / each["path"]
                if path == TuningFiles(folder, name).choice and md5(path) != each["md5"]:
                    raise RecordError(f"{path}: was changed since {name} was trained: run `dvc repro`")


def compared(config: Config, folder: Path) -> "Comparison":
    """What the pipeline in a folder compares: its own runs, or the first optimizer's with those of a study.

    Raises:
        ConfigError, RecordError: as for `collect` here and in `results.comparison`.
    """
    from optlab.results import comparison

    study = study_of(folder)
    return collect(config, folder, study) if study else comparison.collect(config, folder)


def collect(config: Config, folder: Path, study: Path) -> "Comparison":
    """The challenger beside the study's optimizers.

    Args:
        config: of the pipeline in `folder`.

    Raises:
        ConfigError: the pipeline is not of the study as it is now.
        RecordError: a record is incomplete, or the study's is of other parameters than its params.yaml has.
    """
    from optlab.results import comparison

    base, (challenger, *again) = check_study(study), config.optimizers
    if config.model_copy(update={"optimizers": base.optimizers}) != base:
        raise ConfigError(f"{folder / PARAMS}: is not what {study / PARAMS} has: repeat `optlab versus`")
    merged = base.model_copy(update={"optimizers": {challenger: config.optimizers[challenger]} | base.optimizers})
    places = {name: comparison.Places(folder if name in again else study, study) for name in base.optimizers}
    compared = comparison.collect(merged, folder, elsewhere=places)
    notes = [_note(how, runs, challenger) for how, runs in differences(config, folder, study).items()]
    return dataclasses.replace(compared, challenger=challenger, mixture={}, notes=tuple(notes))


def _note(how: str, runs: list[str], challenger: str) -> str:
    names = list(dict.fromkeys(run.rpartition("-")[0] for run in runs))
    remedy = ": `optlab versus` with `--again` trains such runs of the study here" if challenger not in names else ""
    return (
        f"{', '.join(names)} ({counted(len(runs), 'run')}) {'was' if len(names) == 1 else 'were'} recorded otherwise "
        f"than the first run of {challenger}, so a difference need not be the optimizer's: {how}{remedy}."
    )


def differing(config: Config, folder: Path, study: Path) -> list[str]:
    """The study's optimizers with a run that was made otherwise than the challenger's first one, in its order."""
    found = {run.rpartition("-")[0] for runs in differences(config, folder, study).values() for run in runs}
    return [name for name in reading.load(study / PARAMS).optimizers if name in found]


def differences(config: Config, folder: Path, study: Path) -> dict[str, list[str]]:
    """How runs were made otherwise than the challenger's first one → which: by conditions, or by code.

    Those that are trained again count as they are in `folder`.
    """
    base, (challenger, *again) = reading.load(study / PARAMS), config.optimizers
    portable, seed = config.training.numerics == "portable", config.seeds[0]
    own = _conditions(folder, challenger, seed)
    locked = {place: LockFile(place / "dvc.lock", []).entries() for place in (study, folder)}
    own_code = _code(locked[folder], challenger, seed)
    found: dict[str, list[str]] = {}
    for name in (challenger, *base.optimizers):
        place = folder if name in (challenger, *again) else study
        modules = _changed_modules(base, study, name) if place == study else []
        for each in config.seeds:
            theirs = _conditions(place, name, each)
            code = _code(locked[place], name, each)
            changed = dict.fromkeys(key[1] for key, digest in own_code.items() if code.get(key) != digest)
            parts = _conditions_that_differ(own, theirs, portable)
            parts += [f"{', '.join([*changed, *modules])} has changed since"] if changed or modules else []
            if parts:
                found.setdefault("; ".join(parts), []).append(run_id(name, each))
    return found


def _conditions_that_differ(own: Conditions | None, theirs: Conditions | None, portable: bool) -> list[str]:
    if own is None and theirs is None:
        return ["conditions not recorded of either"]
    mixed = origin.mixture({"own": own, "theirs": theirs}, portable)
    parts = []
    for title, groups in mixed.items():
        value = {run: text for text, runs in groups.items() for run in runs}
        if len(value) == 1:  # of conditions that are not recorded
            parts.append(f"{title} {value.get('theirs', 'recorded')}, not {value.get('own', 'recorded')}")
        else:
            parts.append(f"{title} {value['theirs']}, not {value['own']}")
    return parts


def _changed_modules(base: Config, study: Path, name: str) -> list[str]:
    """The modules of custom/ that an optimizer of the study uses, and that are others now."""
    recorded, now = Choice.read(TuningFiles(study, name).choice).modules, choice.modules(base.paths(name))
    return [path for path in recorded | now if recorded.get(path) != now.get(path)]


def _conditions(folder: Path, name: str, seed: int) -> Conditions | None:
    place = RunFiles(folder, name, seed)
    return Conditions.of_weights(place.conditions, Trained.read(place.training).weights_sha256)


def _code(locked: dict[str, str], name: str, seed: int) -> dict[tuple[str, str], str]:
    """Stage and path → digest of the code that a run was trained and evaluated by."""
    return {
        (stage, path.lstrip("./")): digest
        for stage in _STAGES
        for path, digest in _CODE.findall(locked.get(f"{stage}@{run_id(name, seed)}", ""))
    }
