"""`optlab versus`: writes and runs a pipeline for one optimizer against a study's.

It is a folder beside the study, such as `studies/optimizers-adan`. `versus`, on which that pipeline's stage `compare`
depends, is a module of its own.
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
    """Tune, train and compare the optimizer; returns the pipeline's folder, relative to the working directory, the top.

    Args:
        name_or_module: module of custom/, or name of an entry of `params` or of the catalog.
        params: params.yaml that has the entry.
        study: folder of the study.
        retrain: train runs of the study again that were recorded with another environment or other code.
        jobs: as for `repro.run_pipeline`.

    Raises:
        ConfigError: the entry is unknown or cannot be used, the study has one of that name, or it is no study.
        RecordError: the study's record is incomplete, or belongs to other parameters.
        OptlabError: as for `repro.run_pipeline`.
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
    for forced in ([], [name]) if retrain else ():  # at last the challenger, whose environment may be the older one
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
    """Return an entry's name and values.

    Raises:
        ConfigError: there is no such entry.
    """
    specs = loader.load(params).optimizers
    values = versus.parse_yaml(params.read_text("utf-8"))[OPTIMIZERS_KEY]
    if not name_or_module.endswith(".py"):
        is_own = name_or_module in specs
        return name_or_module, values[name_or_module] if is_own else catalog.find_entry(name_or_module).values
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
    """Return an entry without ranges with one for its learning rate, if it has that."""
    lr_owner = entry if "lr" in entry else entry.get("base", {})
    if OptimizerSpec.model_validate(entry).ranges or not lr_owner.get("lr"):
        return entry
    ends = [float(f"{end:g}") for end in catalog.compute_lr_range(lr_owner["lr"])]
    part_with_range = lr_owner | {"lr": {"log": ends}, "default": {"lr": lr_owner["lr"]}}
    return part_with_range if lr_owner is entry else entry | {"base": part_with_range}


def _read_retrained(folder: Path, header: str) -> list[str]:
    """Return the optimizers that an earlier call has trained again.

    Raises:
        ConfigError: the folder has something else.
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
    with locks.hold_lock("repro"):  # no process reads the present files
        for path, content in ((folder / PARAMS_FILE, text), (folder / "dvc.yaml", pipeline)):
            if not path.exists() or path.read_text("utf-8") != content:
                files.write_atomic(path, content.encode())
    return config


def _make_dvc_yaml(study: Path) -> str:
    """Return the study's dvc.yaml with another stage `compare`: with the study's record.

    Raises:
        ConfigError: the stage is not as in the repository's studies.
    """
    yaml = YAML()
    yaml.width = _YAML_WIDTH
    lines = (study / "dvc.yaml").read_text("utf-8").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]  # the study's description
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        content = yaml.load("".join(lines))
        compare = content["stages"]["compare"]
        python, script = shlex.split(compare["cmd"])
        compare["deps"].remove(script)
        prefix = script[: script.index("pipeline/compare.py")]
        versus_script = f"{prefix}pipeline/versus.py"
        compare["desc"] = "The first optimizer beside those of the study"
        compare["cmd"] = f"{python} {versus_script} ../{shlex.quote(study.name)}"
        # The study's outputs as dependencies would add its stages to this pipeline; its dvc.lock has their digests.
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
