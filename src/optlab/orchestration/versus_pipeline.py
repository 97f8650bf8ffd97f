"""`optlab versus`: writes and runs a pipeline for one optimizer against a study's.

It is a folder beside the study, such as `studies/optimizers-adan`. `versus`, on which that pipeline's stage `compare`
depends, is a module of its own.
"""

import contextlib
import io
import itertools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from optlab.config import catalog, loader
from optlab.config.params_editor import OPTIMIZERS_KEY
from optlab.orchestration import attempts, repro, versus
from optlab.records import Choice, TuningFiles
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import PARAMS_FILE, SEED_LIMIT_OF_RUNS, Config
from optlab.system import files, locks, processes, repository
from optlab.system.errors import ConfigError, print_stderr
from optlab.system.text import parse_yaml
from optlab.tuning import selection

DEFAULT_STUDY = Path("studies") / "optimizers"

_EDIT = "`optlab versus` writes this: edit "
_HEADER = f"# {{challenger}} against what {{study}} has on record. {_EDIT}{{params}}.\n"
_YAML_WIDTH = 120


def run(name_or_module: str, params: Path, study: Path, retrain: bool, fresh_seeds: bool, jobs: int | None) -> Path:
    """Tune, train and compare the optimizer; returns the pipeline's folder, relative to the working directory, the top.

    Args:
        name_or_module: module of custom/, or name of an entry of `params` or of the catalog.
        params: params.yaml that has the entry.
        study: folder of the study.
        retrain: train runs of the study again that were recorded with another environment or other code.
        fresh_seeds: confirm with seeds that no attempt has; else with those of an earlier call, or the
            study's.
        jobs: as for `repro.run_pipeline`.

    Raises:
        ConfigError: the entry is unknown or cannot be used, the study has one of that name, or it is no study.
        RecordError: the study's record is incomplete, or belongs to other parameters.
        OptlabError: as for `repro.run_pipeline`.
    """
    config = _load_study(study)
    name, entry = find_entry(name_or_module, params, config.model)
    if name in config.optimizers:
        raise ConfigError(f"{name} is one of the optimizers of {study}: give your entry another name")
    folder = study.with_name(f"{study.name}-{name}")
    head = _HEADER.format(challenger=name, study=study, params=params)
    entry_with_ranges = add_lr_ranges(entry) if any(spec.ranges for spec in config.optimizers.values()) else entry
    earlier = _read_earlier(folder, head)
    challenger = {name: entry_with_ranges}
    seeds = _find_fresh_seeds(config, study, earlier) if fresh_seeds else _keep_seeds(config, earlier)
    kept = earlier.optimizers if earlier and not fresh_seeds else ()
    retrained = [each for each in config.optimizers if each in kept]
    try:
        own_config = _write_pipeline(folder, study, head, challenger, retrained, seeds)
        repro.run_pipeline(own_config, folder, jobs)
        for forced in ([], [name]) if retrain else ():  # at last the challenger, whose environment may be the older one
            outdated = versus.list_differing_optimizers(own_config, folder, study)
            if not outdated:
                break
            retrained = [each for each in config.optimizers if each in (*retrained, *outdated)]
            own_config = _write_pipeline(folder, study, head, challenger, retrained, seeds)
            repro.run_pipeline(own_config, folder, jobs, forced=forced or outdated)
    except KeyboardInterrupt:
        option = [] if study == DEFAULT_STUDY else ["--study", str(study)]
        command = shlex.join(["optlab", "versus", name_or_module, *option, *["--again"] * retrain])
        print_stderr(f"{folder}: the trials and runs that are complete are kept: `{command}` does the rest")
        raise
    return folder


def _load_study(study: Path) -> Config:
    if study == Path() or ".." in study.parts or not (study / "dvc.yaml").is_file():
        raise ConfigError(
            f"{study}: no study of this repository in a folder of its own: name one, such as {DEFAULT_STUDY}"
        )
    reference = versus.find_study(study)
    if reference:
        raise ConfigError(f"{study}: compares with a study, and is none: name {reference.study}")
    return versus.check_study(study)


def find_entry(name_or_module: str, params: Path, model: str) -> tuple[str, dict[str, Any]]:
    """Return an entry's name and values.

    Args:
        model: the study's, for an entry of the catalog.

    Raises:
        ConfigError: there is no such entry.
    """
    specs = loader.load(params).optimizers
    values = parse_yaml(params.read_text("utf-8"))[OPTIMIZERS_KEY]
    if not name_or_module.endswith(".py"):
        if name_or_module in specs:
            return name_or_module, values[name_or_module]
        entry = catalog.find_entry(name_or_module)
        if entry.needs_output_weight:
            entry = entry.fill_in_output_weight(processes.call_in_fork(lambda: _find_output_weight(model)))
        return name_or_module, entry.values
    module = Path(name_or_module).stem
    if not (repository.CUSTOM / f"{module}.py").is_file():
        raise ConfigError(
            f"{name_or_module}: no such module in {repository.CUSTOM}/: copy it there, or begin one with "
            "`optlab new NAME`"
        )
    matching = [name for name, spec in specs.items() if any(cls.startswith(f"{module}.") for cls in spec.classes)]
    if len(matching) != 1:
        many = f"{', '.join(matching)} have: name the one that is meant" if matching else "add one"
        raise ConfigError(
            f"{params}: {'more than one' if matching else 'no'} entry has a class of {name_or_module}: {many}"
        )
    return matching[0], values[matching[0]]


def _find_output_weight(model: str) -> str:
    """Return as `model_check.find_output_weight`; in a fork, because `numerics.prepare` has to come before torch."""
    import torch

    from optlab.preflight import model_check

    torch.set_num_threads(1)  # a fork has no worker threads
    return model_check.find_output_weight(model)


def add_lr_ranges(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry without ranges with one for each learning rate."""
    return entry if OptimizerSpec.model_validate(entry).ranges else catalog.add_lr_ranges(entry)


def _read_earlier(folder: Path, header: str) -> Config | None:
    """Return the configuration of an earlier call; None for the first one.

    Raises:
        ConfigError: the folder has something else.
    """
    if not folder.exists():
        return None
    try:
        text = (folder / PARAMS_FILE).read_text("utf-8")
    except OSError:
        text = ""
    before, mark, _ = header.partition(_EDIT)
    if mark and text.startswith(before + mark) and not text.startswith(header):
        own = text.removeprefix(before + mark).partition(".\n")[0]
        raise ConfigError(f"{folder}: belongs to the entries of {own}: run the command in the folder of that file")
    if not text.startswith(header):
        raise ConfigError(f"{folder}: is there already, and not what this command has written: rename or remove it")
    return loader.parse(text, folder / PARAMS_FILE)


def _keep_seeds(config: Config, earlier: Config | None) -> list[int]:
    """Return the fresh seeds of an earlier call, or else the study's."""
    return earlier.seeds if earlier and versus.has_fresh_seeds(earlier, config) else config.seeds


def _find_fresh_seeds(config: Config, study: Path, earlier: Config | None) -> list[int]:
    """Return as many seeds as the study has, beyond its largest, that no attempt has.

    Raises:
        RecordError: the list of attempts is damaged.
    """
    taken = {*config.seeds, *(earlier.seeds if earlier else ())}
    taken |= {seed for attempt in attempts.read(study) for seed in attempt.seeds}
    numbers = (each % SEED_LIMIT_OF_RUNS for each in itertools.count(max(config.seeds) + 1))
    return list(itertools.islice((each for each in numbers if each not in taken), len(config.seeds)))


def _write_pipeline(folder: Path, study: Path, header: str, challenger: dict[str, Any], retrained: list[str],
                    seeds: list[int]) -> Config:  # fmt: skip
    """Write both files of the pipeline; returns its configuration.

    The optimizers that are trained again are tuned again, too, if each seed has a search of its own; otherwise they
    have the values that the study's search has chosen.
    """
    base = parse_yaml((study / PARAMS_FILE).read_text("utf-8"))
    entries = challenger | {each: _make_retrained_entry(base, study, each) for each in retrained}
    values = base | {"seeds": seeds, OPTIMIZERS_KEY: entries}
    text = f"{header}\n{dump_yaml(values)}"
    config = loader.parse(text, folder / PARAMS_FILE)
    write_files(folder, text, header + _make_dvc_yaml(study, _find_attempt(config, study, next(iter(challenger)))))
    return config


def write_files(folder: Path, params: str, dvc_yaml: str) -> None:
    """Write params.yaml and dvc.yaml of a pipeline; a file that has the content already keeps its time."""
    with locks.hold_lock("repro"):  # no process reads the present files
        for path, content in ((folder / PARAMS_FILE, params), (folder / "dvc.yaml", dvc_yaml)):
            if not path.exists() or path.read_text("utf-8") != content:
                files.write_atomic(path, content.encode())


def _make_retrained_entry(base: dict[str, Any], study: Path, name: str) -> dict[str, Any]:
    config = loader.load(study / PARAMS_FILE)
    if config.tuning.per_seed:
        entry: dict[str, Any] = base[OPTIMIZERS_KEY][name]
        return entry
    return Choice.read(TuningFiles.find(study, name, config.seeds[0]).choice).entry


def _find_attempt(config: Config, study: Path, name: str) -> int:
    """Return the number of the attempt that the optimizer is, or will be, with its present entry and modules."""
    modules = selection.hash_modules(config.list_class_paths(name))
    return attempts.find_number(attempts.read(study), attempts.make_attempt(config, name, modules))


def _make_dvc_yaml(study: Path, attempt: int) -> str:
    """Return the study's dvc.yaml with another stage `compare`: with the study's record.

    Its command names the attempt, which decides the verdict. The list of attempts is no dependency: a later attempt
    makes nothing stale.

    Raises:
        ConfigError: the stage is not as in the repository's studies.
    """

    def replace_comparison(content: Any) -> None:
        compare = content["stages"]["compare"]
        python, script = shlex.split(compare["cmd"])
        compare["deps"].remove(script)
        prefix = script[: script.index("pipeline/compare.py")]
        versus_script = f"{prefix}pipeline/versus.py"
        compare["desc"] = "The first optimizer beside those of the study"
        compare["cmd"] = f"{python} {versus_script} ../{shlex.quote(study.name)} {attempt}"
        # The study's outputs as dependencies would add its stages to this pipeline; its dvc.lock has their digests.
        code = [f"{prefix}src/optlab/orchestration/{each}.py" for each in ("attempts", "versus")]
        compare["deps"] += [versus_script, *code]
        compare["deps"] += [f"../{study.name}/{name}" for name in (PARAMS_FILE, "dvc.lock")]

    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        return render_changed_dvc_yaml(study, replace_comparison)
    raise ConfigError(
        f"{study / 'dvc.yaml'}: its stage `compare` is not as in {DEFAULT_STUDY}: it cannot be taken over"
    )


def render_changed_dvc_yaml(study: Path, change: Callable[[Any], None]) -> str:
    """Return a study's dvc.yaml without its description, with its comments, after `change` of its content."""
    yaml, text = YAML(), io.StringIO()
    yaml.width = _YAML_WIDTH
    lines = (study / "dvc.yaml").read_text("utf-8").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]  # the study's description
    content = yaml.load("".join(lines))
    change(content)
    yaml.dump(content, text)
    return text.getvalue()


def dump_yaml(values: dict[str, Any]) -> str:
    """Return YAML with the innermost mappings and lists on a line."""
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = None, _YAML_WIDTH
    yaml.dump(values, text)
    return text.getvalue()
