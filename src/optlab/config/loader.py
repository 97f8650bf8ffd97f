"""Read a params.yaml: YAML 1.2, as DVC reads it, into the models of `parameters`."""

from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from optlab.config.error_messages import describe_error
from optlab.schema.parameters import PARAMS_FILE, Config, format_run_id
from optlab.system.errors import ConfigError, RevisionError, summarize_error
from optlab.system.git import Revision


def load(path: Path = PARAMS_FILE) -> Config:
    """Read and check params.yaml, by the rules of YAML 1.2, as DVC reads it.

    Raises:
        ConfigError: one line with the file, the line, the key and the remedy.
    """
    return parse(_read_text(path), path)


def load_for_stages(folder: Path) -> Config:
    """Read and check the params.yaml of a pipeline whose stages are to be run.

    Raises:
        ConfigError: as in `load`; or a section is missing that dvc.yaml names, which DVC asks for even if all of its
            keys have defaults.
    """
    config = load(folder / PARAMS_FILE)
    if not (folder / "dvc.yaml").is_file():
        return config
    yaml = YAML(typ="safe", pure=True)
    present = yaml.load((folder / PARAMS_FILE).read_text(encoding="utf-8"))
    stages = yaml.load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    named = [each for stage in stages for each in stage.get("params", ()) if isinstance(each, str)]
    missing = next((each for each in named if each.partition(".")[0] not in present), None)
    if missing:
        raise ConfigError(
            f"{folder / PARAMS_FILE}: no section `{missing}`, which dvc.yaml names: add `{missing}: {{}}`"
        )
    return config


def load_at_revision(revision: Revision, folder: Path = Path()) -> Config:
    """The params.yaml that a revision has in that folder.

    Raises:
        RevisionError: it has none.
        ConfigError: it cannot be used with this version.
    """
    path = folder / PARAMS_FILE
    text = revision.read(path)
    if text is None:
        raise RevisionError(f"{revision.name}: has no {path}")
    return parse(text.decode(errors="replace"), Path(f"{revision.name}:{path}"))


def list_run_ids(revision: Revision, folder: Path, locked_ids: list[str]) -> list[str]:
    """The ids of the runs that a revision's params.yaml names, also one that this version cannot use.

    Args:
        locked_ids: those of its dvc.lock, which DVC never removes an entry from; the answer where the file names none.
    """
    text = revision.read(folder / PARAMS_FILE) or b""
    try:
        values = YAML(typ="safe", pure=True).load(text.decode())
        return [format_run_id(name, seed) for name in values["optimizers"] for seed in values["seeds"]]
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return locked_ids


def parse(text: str, path: Path) -> Config:
    """Check the text of a params.yaml; errors as in `load`, which call it by `path`."""
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        problem = (error.problem or str(error)).splitlines()[0]
        hint = ": indent with spaces, not with a tab" if "\\t" in problem else ""
        raise ConfigError(f"{where}: not valid YAML: {problem}{hint}") from None
    except Exception as error:  # a value that does not fit its tag, as in `!!int ""`, raises whatever Python raises
        raise ConfigError(f"{path}: not valid YAML: {type(error).__name__}: {summarize_error(error)}") from None
    if values is None:
        raise ConfigError(f"{path}: the file is empty: restore it with `git checkout {path}`")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe_error(path, text, values, error)) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file here: run from the folder that holds it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
