"""`optlab submit`: writes and runs the pipeline of a record of a ranking."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAMLError

from optlab.config import loader
from optlab.orchestration import repro
from optlab.orchestration.versus_pipeline import (
    add_lr_ranges,
    dump_yaml,
    find_entry,
    render_changed_dvc_yaml,
    write_files,
)
from optlab.ranking import module_scan
from optlab.ranking.protocol import PROTOCOL_FILE, Ranking, compute_code_digest
from optlab.schema.parameters import PARAMS_FILE, Config
from optlab.system import repository
from optlab.system.errors import ConfigError
from optlab.system.text import parse_yaml
from optlab.tuning import selection

_HEADER = "# {name}, by {protocol}. `optlab submit` writes this file; an edit draws other seeds.\n\n"


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
    text = render_params(ranking, name, add_lr_ranges(entry))
    config = loader.parse(text, record / PARAMS_FILE)
    check_new(record, text, config)
    check_code(ranking, ranking.study)
    modules = selection.hash_modules(config.list_class_paths(name))
    write_files(record, text, render_dvc_yaml(ranking, name, list(modules)))
    if not (record / ".dvc" / "config").is_file():
        repository.make_dvc_project(record)
    repro.run_pipeline(config, record, jobs)
    return record


def check_new(folder: Path, text: str, config: Config) -> None:
    """Check before hours of training what would be refused after them.

    Args:
        folder: of the record.
        text: of its params.yaml.
        config: the same, parsed.

    Raises:
        ConfigError: the folder has the record of another version of the optimizer, or its modules would be refused.
    """
    path = folder / PARAMS_FILE
    if path.exists() and path.read_text("utf-8") != text:
        raise ConfigError(
            f"{path}: the record of another entry or module: an edit changes the seeds, and so the whole record: "
            f"remove {folder}, then repeat the command"
        )
    refused = module_scan.find_problems(config.list_class_paths(folder.name))
    if refused:
        raise ConfigError(f"{refused[0]}, which `optlab verify` refuses: an optimizer of a ranking only computes")


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

    def take_training_stages(content: Any) -> None:
        content.pop("plots", None)
        del content["stages"]["compare"]
        for stage in content["stages"].values():
            deps = (stage.get("do") or stage).get("deps", [])
            if repository.CUSTOM.name in deps:
                index = deps.index(repository.CUSTOM.name)
                deps[index : index + 1] = modules

    header = _HEADER.format(name=name, protocol=ranking.folder / PROTOCOL_FILE)
    return header + render_changed_dvc_yaml(ranking.study, take_training_stages)


def check_code(ranking: Ranking, folder: Path) -> None:
    """Check that the code here is the protocol's.

    Args:
        folder: with the dvc.yaml whose code is checked.

    Raises:
        ConfigError: it is not.
    """
    digest = compute_code_digest(folder)
    if digest not in ranking.protocol.code:
        path = ranking.folder / PROTOCOL_FILE
        raise ConfigError(
            f"{path}: the code that searches, trains and evaluates here is not the protocol's: undo its changes, or "
            f"use a revision with the protocol's code (digest of the code here: {digest}; accepted digests: `code`)"
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
