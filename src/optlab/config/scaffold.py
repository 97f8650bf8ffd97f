"""New optimizers: create a module in custom/ with its test and its entry."""

import contextlib
import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from optlab.config import loader, params_editor
from optlab.schema.parameters import NAME_PATTERN
from optlab.system import files, repository
from optlab.system.errors import ConfigError

_TESTS_FOLDER = Path("tests")
_TEMPLATES = Path(__file__).parent


def create_optimizer(name: str, params: Path) -> list[Path]:
    """Create an optimizer's module, its test and its entry; returns the paths of the module and of the test.

    The working directory is the repository root.

    Raises:
        ConfigError: the name is not valid, or something of that name exists; then nothing is written.
        StorageError: a file cannot be written.
    """
    _check_name(name, params)
    class_name = "".join(part.capitalize() for part in name.split("_"))
    templates = {
        repository.CUSTOM / f"{name}.py": _TEMPLATES / "optimizer.py.template",
        _TESTS_FOLDER / f"test_{name}.py": _TEMPLATES / "test_optimizer.py.template",
    }
    for path in templates:
        if path.exists():
            raise ConfigError(f"{path} is there already: choose another name, or edit that one")
    try:
        for path, template in templates.items():
            text = Template(template.read_text("utf-8")).substitute(name=name, class_=class_name)
            files.write_atomic(path, text.encode())
        params_editor.add_entry(params, name, f"{{class: {name}.{class_name}, lr: 0.01}}")
    except BaseException:
        for path in templates:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # none of them was there before
                path.unlink()
        raise
    return list(templates)


def _check_name(name: str, params: Path) -> None:
    if not re.fullmatch(NAME_PATTERN, name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name for it: a lower-case letter, then up to 99 of them, digits or _")
    if name in loader.load(params).optimizers:
        raise ConfigError(f"{params}: optimizers.{name} is there already: choose another name")
    if not (repository.CUSTOM / f"{name}.py").exists() and importlib.util.find_spec(name) is not None:
        raise ConfigError(f"{name!r} is the name of a Python module already: choose another one")
