"""`optlab versus`: a pipeline of its own for one optimizer against a study's, written and run.

It lies beside the study, as `studies/optimizers-adan` beside `studies/optimizers`.
"""

import contextlib
import io
import shlex
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from optlab.config import catalog, loader
from optlab.config.scaffold import OPTIMIZERS_KEY
from optlab.orchestration import repro, versus
from optlab.records import TuningFiles, TuningResult
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import PARAMS_FILE, Config
from optlab.system import files, locks, repository
from optlab.system.errors import ConfigError

DEFAULT_STUDY = Path("studies") / "optimizers"

_HEADER = "# {challenger} against what {study} has on record. `optlab versus` writes this: edit {params}.\n"
_YAML_WIDTH = 120


def run(name_or_module: str, params: Path, study: Path, retrain: bool, jobs: int | None) -> Path:
    """Tune and confirm the optimizer, and compare; returns the pipeline's folder, relative to the top, where we are.

    Args:
        name_or_module: a module of custom/, or the name of an entry of `params` or of a ready one.
        params: the params.yaml that has the entry.
        study: the folder of the study.
        retrain: whether what the study has recorded under other conditions, or by other code, is trained again.
        jobs: as for `repro.run_pipeline`.

    Raises:
        ConfigError: the entry is not known or cannot be used, the study has one of that name, or it is no study.
        RecordError: the study's record is not complete, or of other parameters.
        OptlabError: what `repro.run_pipeline` says besides.
    """
    config = _load_study(study, retrain)
    name, entry = _find_entry(name_or_module, params)
    if name in config.optimizers:
        raise ConfigError(f"{name} is one of the optimizers of {study}: give your entry another name")
    folder = study.with_name(f"{study.name}-{name}")
    head = _HEADER.format(challenger=name, study=study, params=params)
    entry_with_ranges = _add_lr_range(entry) if any(spec.ranges for spec in config.optimizers.values()) else entry
    retrained = [each for each in _read_retrained(folder, head) if each in config.optimizers]
    own_config = _write_pipeline(folder, study, head, {name: entry_with_ranges}, retrained)
    repro.run_pipeline(own_config, folder, jobs)
    for forced in ([], [name]) if retrain else ():  # if some still differ, it is the challenger that is of another time
        outdated = versus.list_differing_optimizers(own_config, folder, study)
        if not outdated:
            break
        retrained = [each for each in config.optimizers if each in (*retrained, *outdated)]
        own_config = _write_pipeline(folder, study, head, {name: entry_with_ranges}, retrained)
        repro.run_pipeline(own_config, folder, jobs, forced=forced or outdated)
    return folder


def _load_study(study: Path, retrain: bool) -> Config:
    if study == Path() or ".." in study.parts or not (study / "dvc.yaml").is_file():
        raise ConfigError(
            f"{study}: no study of this repository in a folder of its own: name one, such as {DEFAULT_STUDY}"
        )
    base_study = versus.find_study(study)
    if base_study:
        raise ConfigError(f"{study}: compares with a study, and is none: name {base_study}")
    config = versus.check_study(study)
    if retrain and config.tuning.studies > 1:
        raise ConfigError(
            f"{study}: has several tunings of each optimizer, and so several values: `--again` trains none of them: "
            f"run `optlab repro` there instead"
        )
    return config


def _find_entry(name_or_module: str, params: Path) -> tuple[str, dict[str, Any]]:
    """Its name and its values."""
    specs = loader.load(params).optimizers
    values = versus.parse_yaml(params.read_text("utf-8"))[OPTIMIZERS_KEY]
    if not name_or_module.endswith(".py"):
        return (
            (name_or_module, values[name_or_module])
            if name_or_module in specs
            else (name_or_module, catalog.find_entry(name_or_module).values)
        )
    module = Path(name_or_module).stem
    if not (repository.CUSTOM / f"{module}.py").is_file():
        raise ConfigError(f"{name_or_module}: no such module in {repository.CUSTOM}/: `optlab new NAME` begins one")
    matching = [name for name, spec in specs.items() if any(cls.startswith(f"{module}.") for cls in spec.classes)]
    if len(matching) != 1:
        many = f"{', '.join(matching)} have: name the one that is meant" if matching else "add one"
        raise ConfigError(
            f"{params}: {'more than one' if matching else 'no'} entry has a class of {name_or_module}: {many}"
        )
    return matching[0], values[matching[0]]


def _add_lr_range(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with a range for its learning rate, where it has one, and no range at all."""
    lr_owner = entry if "lr" in entry else entry.get("base", {})
    if OptimizerSpec.model_validate(entry).ranges or not lr_owner.get("lr"):
        return entry
    ends = [float(f"{end:g}") for end in catalog.compute_lr_range(lr_owner["lr"])]
    part_with_range = lr_owner | {"lr": {"log": ends}, "default": {"lr": lr_owner["lr"]}}
    return part_with_range if lr_owner is entry else entry | {"base": part_with_range}


def _read_retrained(folder: Path, header: str) -> list[str]:
    """The optimizers that an earlier call has trained again.

    Raises:
        ConfigError: there is something else.
    """
    if not folder.exists():
        return []
    try:
        text = (folder / PARAMS_FILE).read_text("utf-8")
    except OSError:
        text = ""
    if not text.startswith(header):
        raise ConfigError(f"{folder}: is there already, and not what this command has written: rename or remove it")
    return list(loader.parse(text, folder / PARAMS_FILE).optimizers)[1:]


def _write_pipeline(folder: Path, study: Path, header: str, challenger: dict[str, Any], retrained: list[str]) -> Config:
    """Write both files of the pipeline; returns its configuration."""
    entries = challenger | {
        each: TuningResult.read(TuningFiles(study, each).choice).studies[0].entry for each in retrained
    }
    values = versus.parse_yaml((study / PARAMS_FILE).read_text("utf-8")) | {OPTIMIZERS_KEY: entries}
    text = f"{header}\n{_dump_yaml(values)}"
    config, pipeline = loader.parse(text, folder / PARAMS_FILE), header + _make_dvc_yaml(study)
    with locks.hold_lock("repro"):  # nobody is at work with the present ones
        for path, content in ((folder / PARAMS_FILE, text), (folder / "dvc.yaml", pipeline)):
            if not path.exists() or path.read_text("utf-8") != content:
                files.write_atomic(path, content.encode())
    return config


def _make_dvc_yaml(study: Path) -> str:
    """The study's dvc.yaml, whose last stage compares with the study's record."""
    yaml = YAML()
    yaml.width = _YAML_WIDTH
    lines = (study / "dvc.yaml").read_text("utf-8").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]  # what the study is
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        content = yaml.load("".join(lines))
        compare = content["stages"]["compare"]
        python, script = shlex.split(compare["cmd"])
        compare["deps"].remove(script)
        prefix = script[: script.index("pipeline/compare.py")]
        versus_script = f"{prefix}pipeline/versus.py"
        compare["desc"] = "The first optimizer beside those of the study"
        compare["cmd"] = f"{python} {versus_script} ../{shlex.quote(study.name)}"
        # The study's outputs would make its stages a part of this pipeline; its dvc.lock has the digests of them all.
        compare["deps"] += [versus_script, f"{prefix}src/optlab/orchestration/versus.py"]
        compare["deps"] += [f"../{study.name}/{name}" for name in (PARAMS_FILE, "dvc.lock")]
        text = io.StringIO()
        yaml.dump(content, text)
        return text.getvalue()
    raise ConfigError(
        f"{study / 'dvc.yaml'}: its stage `compare` is not as in {DEFAULT_STUDY}: it cannot be taken over"
    )


def _dump_yaml(values: dict[str, Any]) -> str:
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = None, _YAML_WIDTH  # the innermost on a line
    yaml.dump(values, text)
    return text.getvalue()
