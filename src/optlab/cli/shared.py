"""What the commands share: the application, and where they are called.

A shell imports all of this room for every completion: what takes long to import (torch, MLflow, the configuration's
models) is imported by the commands that need it.
"""

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from optlab.system import errors, git, repository

if TYPE_CHECKING:
    from optlab.schema.parameters import Config

RUN, ADD, COMPARE, REPRODUCE, TRACK = "Run", "Add an optimizer", "Compare", "Reproduce", "Track with MLflow"


class _Group(TyperGroup):
    """The command line; its help shows no `<bool>` beside a flag."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))


class _Command(TyperCommand):
    """A command; its help shows no `<bool>` beside a flag, and no `<str>` beside an argument."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))


def _hide_types(params: list[Any]) -> list[Any]:
    for each in params:
        if isinstance(each, TyperArgument) or each.is_flag:
            each.display_type_rich = lambda ctx: ""
    return params


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which optimizer should I use on CIFAR-10, by how much is it better, and can I prove it?",
    epilog="Start with `optlab show`. `optlab COMMAND --help` has options and an example.",
)


def register_command(panel: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command under a heading of the help, with an example."""
    return app.command(cls=_Command, rich_help_panel=panel, epilog=f"Example: {example}")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"optlab {importlib.metadata.version('optlab')}")
        raise typer.Exit


@app.callback()
def _handle_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """The options of `optlab` itself."""


def load_settings(folder: Path) -> "Config":
    """The params.yaml of a folder; it costs no torch, and is checked before anything that does is imported."""
    from optlab.config import loader
    from optlab.schema import parameters

    return loader.load(folder / parameters.PARAMS_FILE)


PipelineOption = Annotated[
    Path, typer.Option("--pipeline", metavar="FOLDER", help="The folder of its dvc.yaml; default: this one.")
]


def enter_pipeline(pipeline: Path) -> Path:
    """Go to the top of the repository; returns the folder of the pipeline that is meant, relative to it."""
    folder = Path(os.path.normpath(repository.enter_root() / pipeline))
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    if folder.is_absolute() or ".." in folder.parts or not (folder / "dvc.yaml").is_file():
        raise errors.RevisionError(
            f"{folder}: no pipeline of this repository: name the folder of one with `--pipeline`"
        )
    return repository.set_pipeline(folder)


def complete_tags(incomplete: str) -> list[str]:
    """The git tags that begin so, for the shell to complete."""
    return (git.get_output("tag", "--list", "--end-of-options", f"{incomplete}*") or "").splitlines()
