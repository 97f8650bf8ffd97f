"""`optlab submit`: writes and runs the pipeline of a record of a ranking."""

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from optlab.orchestration import repro
from optlab.orchestration.versus import parse_yaml
from optlab.orchestration.versus_pipeline import add_lr_ranges, dump_yaml, find_entry
from optlab.ranking import module_scan
from optlab.ranking.protocol import PROTOCOL_FILE, Ranking, compute_code_digest, parse_params
from optlab.schema.parameters import PARAMS_FILE, Config
from optlab.system import files, locks, repository
from optlab.system.errors import ConfigError
from optlab.tuning import selection

_HEADER = "# {name}, by {protocol}. `optlab submit` writes this file; an edit draws other seeds.\n\n"
_YAML_WIDTH = 120


def submit(name_or_module: str, params: Path, folder: Path, jobs: int | None) -> Path:
    """Tune and train an optimizer by the protocol of a ranking; returns the record's folder.

    A record is complete, or grows by what it lacks; an edited optimizer has other seeds, and begins anew.

    Args:
        name_or_module: module of custom/, or name of an entry of `params` or of the catalog.
        params: params.yaml that has the entry.
        folder: of the ranking.
        jobs: as for `repro.run_pipeline`.

    Raises:
        ConfigError: the entry or the protocol cannot be used, or the code is not the protocol's.
        OptlabError: as for `repro.run_pipeline`.
    """
    ranking = Ranking.load(folder)
    study = ranking.check_study()
    name, entry = find_entry(name_or_module, params, study.model)
    if name in study.optimizers:
        raise ConfigError(f"{name} is one of the optimizers of {ranking.study}: give your entry another name")
    record = folder / name
    entry_with_ranges = add_lr_ranges(entry)
    check_new(ranking, name, entry_with_ranges)
    config = write_pipeline(ranking, name, entry_with_ranges)
    check_code(ranking, record)
    repro.run_pipeline(config, record, jobs)
    return record


def check_new(ranking: Ranking, name: str, entry: dict[str, Any]) -> None:
    """Check before hours of training what would be refused after them.

    Raises:
        ConfigError: the folder has the record of another version of the optimizer, or its modules would be refused.
    """
    path = ranking.folder / name / PARAMS_FILE
    config = parse_params(ranking.make_params(name, entry), path)
    if path.exists() and path.read_text("utf-8") != render_params(ranking, name, entry):
        raise ConfigError(
            f"{path}: the record of another entry or module: an edit changes the seeds, and so the whole record: "
            f"remove {path.parent}, then repeat the command"
        )
    refused = module_scan.find_problems(config.list_class_paths(name))
    if refused:
        raise ConfigError(f"{refused[0]}, which `optlab verify` refuses: an optimizer of a ranking only computes")


def write_pipeline(ranking: Ranking, name: str, entry: dict[str, Any]) -> Config:
    """Write params.yaml and dvc.yaml of a record; returns its configuration.

    Raises:
        ConfigError: the entry cannot be used.
    """
    folder = ranking.folder / name
    params = render_params(ranking, name, entry)
    config = parse_params(ranking.make_params(name, entry), folder / PARAMS_FILE)
    modules = selection.hash_modules(config.list_class_paths(name))
    pipeline = render_dvc_yaml(ranking, name, list(modules))
    with locks.hold_lock("repro"):  # no process reads the present files
        for path, content in ((folder / PARAMS_FILE, params), (folder / "dvc.yaml", pipeline)):
            if not path.exists() or path.read_text("utf-8") != content:
                files.write_atomic(path, content.encode())
        if not (folder / ".dvc" / "config").is_file():
            repository.make_dvc_project(folder)
    return config


def render_params(ranking: Ranking, name: str, entry: dict[str, Any]) -> str:
    """Return the text of params.yaml of a record.

    Raises:
        ConfigError: the entry cannot be used.
    """
    header = _HEADER.format(name=name, protocol=ranking.folder / PROTOCOL_FILE)
    return header + dump_yaml(ranking.make_params(name, entry))


def render_dvc_yaml(ranking: Ranking, name: str, modules: list[str]) -> str:
    """Return the text of dvc.yaml of a record: the study's stages without the comparison.

    A stage depends on the optimizer's own modules in place of all of custom/, which other records share.

    Args:
        modules: paths of the optimizer's modules in custom/.
    """
    yaml, text = YAML(), io.StringIO()
    yaml.width = _YAML_WIDTH
    lines = (ranking.study / "dvc.yaml").read_text("utf-8").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]  # the study's description
    content = yaml.load("".join(lines))
    content.pop("plots", None)
    del content["stages"]["compare"]
    for stage in content["stages"].values():
        deps = (stage.get("do") or stage).get("deps", [])
        if repository.CUSTOM.name in deps:
            index = deps.index(repository.CUSTOM.name)
            deps[index : index + 1] = modules
    yaml.dump(content, text)
    return _HEADER.format(name=name, protocol=ranking.folder / PROTOCOL_FILE) + text.getvalue()


def check_code(ranking: Ranking, folder: Path) -> None:
    """Check that the code here is the protocol's.

    Raises:
        ConfigError: it is not.
    """
    digest = compute_code_digest(folder)
    if digest not in ranking.protocol.code:
        path = ranking.folder / PROTOCOL_FILE
        raise ConfigError(
            f"{path}: this code, with digest {digest}, is not among its `code`: use a revision whose code is"
        )


def read_entry(folder: Path) -> dict[str, Any]:
    """Return the entry of a record's optimizer, as its params.yaml has it; its name is that of the folder.

    Raises:
        ConfigError: it has no such entry.
    """
    path = folder / PARAMS_FILE
    try:
        entry: dict[str, Any] = dict(parse_yaml(path.read_text("utf-8"))["optimizers"][folder.name])
    except (OSError, ValueError, KeyError, TypeError, YAMLError):
        raise ConfigError(f"{path}: has no optimizer {folder.name}, which a record's folder is named after") from None
    return entry
