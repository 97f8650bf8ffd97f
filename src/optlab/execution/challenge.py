"""`optlab versus`: a pipeline of its own for one optimizer against a study's, written and run.

It lies beside the study, as `studies/optimizers-adan` beside `studies/optimizers`.
"""

import contextlib
import io
import shlex
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from optlab.config import reading, zoo
from optlab.config.editing import OPTIMIZERS
from optlab.config.entries import OptimizerSpec
from optlab.config.parameters import PARAMS, Config
from optlab.execution import side_by_side, versus
from optlab.record.contents import Choice
from optlab.record.runs import TuningFiles
from optlab.system import files, locks, repository
from optlab.system.errors import ConfigError

STUDY = Path("studies") / "optimizers"

_HEAD = "# {challenger} against what {study} has on record. `optlab versus` writes this: edit {params}.\n"
_WIDTH = 120


def run(what: str, params: Path, study: Path, again: bool, jobs: int | None) -> Path:
    """Tune and confirm the optimizer, and compare; returns the pipeline's folder, relative to the top, where we are.

    Args:
        what: a module of custom/, or the name of an entry of `params` or of a ready one.
        params: the params.yaml that has the entry.
        study: the folder of the study.
        again: whether what the study has recorded under other conditions, or by other code, is trained again.
        jobs: as for `side_by_side.repro`.

    Raises:
        ConfigError: the entry is not known or cannot be used, the study has one of that name, or it is no study.
        RecordError: the study's record is not complete, or of other parameters.
        OptlabError: what `side_by_side.repro` says besides.
    """
    config = _study(study, again)
    name, entry = _entry(what, params)
    if name in config.optimizers:
        raise ConfigError(f"{name} is one of the optimizers of {study}: give your entry another name")
    folder = study.with_name(f"{study.name}-{name}")
    head = _HEAD.format(challenger=name, study=study, params=params)
    ranged = _ranged(entry) if any(spec.ranges for spec in config.optimizers.values()) else entry
    kept = [each for each in _kept(folder, head) if each in config.optimizers]
    own = _write(folder, study, head, {name: ranged}, kept)
    side_by_side.repro(own, folder, jobs)
    for anew in ([], [name]) if again else ():  # if some still differ, it is the challenger that is of another time
        more = versus.differing(own, folder, study)
        if not more:
            break
        kept = [each for each in config.optimizers if each in (*kept, *more)]
        own = _write(folder, study, head, {name: ranged}, kept)
        side_by_side.repro(own, folder, jobs, anew=anew or more)
    return folder


def _study(study: Path, again: bool) -> Config:
    if study == Path() or ".." in study.parts or not (study / "dvc.yaml").is_file():
        raise ConfigError(f"{study}: no study of this repository in a folder of its own: name one, such as {STUDY}")
    compared_with = versus.study_of(study)
    if compared_with:
        raise ConfigError(f"{study}: compares with a study, and is none: name {compared_with}")
    config = versus.check_study(study)
    if again and config.tuning.studies > 1:
        raise ConfigError(
            f"{study}: has several tunings of each optimizer, and so several values: `--again` trains none of them: "
            f"run `optlab repro` there instead"
        )
    return config


def _entry(what: str, params: Path) -> tuple[str, dict[str, Any]]:
    """Its name and its values."""
    known = reading.load(params).optimizers
    values = versus.parsed(params.read_text("utf-8"))[OPTIMIZERS]
    if not what.endswith(".py"):
        return (what, values[what]) if what in known else (what, zoo.find(what).values)
    module = Path(what).stem
    if not (repository.CUSTOM / f"{module}.py").is_file():
        raise ConfigError(f"{what}: no such module in {repository.CUSTOM}/: `optlab new NAME` begins one")
    found = [name for name, spec in known.items() if any(cls.startswith(f"{module}.") for cls in spec.classes)]
    if len(found) != 1:
        many = f"{', '.join(found)} have: name the one that is meant" if found else "add one"
        raise ConfigError(f"{params}: {'more than one' if found else 'no'} entry has a class of {what}: {many}")
    return found[0], values[found[0]]


def _ranged(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with a range for its learning rate, where it has one, and no range at all."""
    part = entry if "lr" in entry else entry.get("base", {})
    if OptimizerSpec.model_validate(entry).ranges or not part.get("lr"):
        return entry
    ends = [float(f"{end:g}") for end in zoo.bounds(part["lr"])]
    ranged = part | {"lr": {"log": ends}, "default": {"lr": part["lr"]}}
    return ranged if part is entry else entry | {"base": ranged}


def _kept(folder: Path, head: str) -> list[str]:
    """The optimizers that an earlier call has trained again.

    Raises:
        ConfigError: there is something else.
    """
    if not folder.exists():
        return []
    try:
        text = (folder / PARAMS).read_text("utf-8")
    except OSError:
        text = ""
    if not text.startswith(head):
        raise ConfigError(f"{folder}: is there already, and not what this command has written: rename or remove it")
    return list(reading.parse(text, folder / PARAMS).optimizers)[1:]


def _write(folder: Path, study: Path, head: str, challenger: dict[str, Any], again: list[str]) -> Config:
    """Write both files of the pipeline; returns its configuration."""
    entries = challenger | {each: Choice.read(TuningFiles(study, each).choice).studies[0].entry for each in again}
    values = versus.parsed((study / PARAMS).read_text("utf-8")) | {OPTIMIZERS: entries}
    text = f"{head}\n{_dumped(values)}"
    config, pipeline = reading.parse(text, folder / PARAMS), head + _pipeline(study)
    with locks.holding("repro"):  # nobody is at work with the present ones
        for path, content in ((folder / PARAMS, text), (folder / "dvc.yaml", pipeline)):
            if not path.exists() or path.read_text("utf-8") != content:
                files.write(path, content.encode())
    return config


def _pipeline(study: Path) -> str:
    """The study's dvc.yaml, whose last stage compares with the study's record."""
    yaml = YAML()
    yaml.width = _WIDTH
    lines = (study / "dvc.yaml").read_text("utf-8").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]  # what the study is
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        content = yaml.load("".join(lines))
        compare = content["stages"]["compare"]
        python, script = shlex.split(compare["cmd"])
        compare["deps"].remove(script)
        above = script[: script.index("pipeline/compare.py")]
        ours = f"{above}pipeline/versus.py"
        compare["desc"] = "The first optimizer beside those of the study"
        compare["cmd"] = f"{python} {ours} ../{shlex.quote(study.name)}"
        # The study's outputs would make its stages a part of this pipeline; its dvc.lock has the digests of them all.
        compare["deps"] += [ours, f"{above}src/optlab/execution/versus.py"]
        compare["deps"] += [f"../{study.name}/{name}" for name in (PARAMS, "dvc.lock")]
        text = io.StringIO()
        yaml.dump(content, text)
        return text.getvalue()
    raise ConfigError(f"{study / 'dvc.yaml'}: its stage `compare` is not as in {STUDY}: it cannot be taken over")


def _dumped(values: dict[str, Any]) -> str:
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = None, _WIDTH  # the innermost on a line
    yaml.dump(values, text)
    return text.getvalue()
