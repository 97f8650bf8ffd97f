"""What the commands share: the application, and where they are called.

A shell imports all of this room for every completion: what takes long to import (torch, MLflow, the configuration's
models) is imported by the commands that need it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optlab.system import errors, git, repository

if TYPE_CHECKING:
    from optlab.config.parameters import Config

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which optimizer should I use on CIFAR-10, by how much is it better, and can I prove it?",
)


def settings_of(folder: Path) -> "Config":
    """The params.yaml of a folder; it costs no torch, and is checked before anything that does is imported."""
    from optlab.config import parameters, reading

    return reading.load(folder / parameters.PARAMS)


Pipeline = Annotated[
    Path, typer.Option("--pipeline", metavar="FOLDER", help="The folder of its dvc.yaml; default: this one.")
]


def enter(pipeline: Path) -> Path:
    """Go to the top of the repository; returns the folder of the pipeline that is meant, relative to it."""
    folder = Path(os.path.normpath(repository.enter() / pipeline))
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    if folder.is_absolute() or ".." in folder.parts or not (folder / "dvc.yaml").is_file():
        raise errors.RevisionError(
            f"{folder}: no pipeline of this repository: name the folder of one with `--pipeline`"
        )
    return repository.choose(folder)


def tags(incomplete: str) -> list[str]:
    """The git tags that begin so, for the shell to complete."""
    return (git.ask("tag", "--list", "--end-of-options", f"{incomplete}*") or "").splitlines()
