"""The command that opens MLflow's pages."""

import os
from pathlib import Path
from typing import Annotated

import typer

from optlab.cli.shared import TRACK, Pipeline, command, enter
from optlab.system import repository


@command(TRACK, "optlab ui --port 5001")
def ui(
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="N", help="MLflow's port, on this machine only.")
    ] = 5000,
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is a display.")] = True,
    pipeline: Pipeline = Path(),
) -> None:
    """Open MLflow: the curves and the table of all runs."""
    folder = enter(pipeline)
    os.chdir(repository.home())
    from optlab.tracking import ui as pages

    pages.open_pages(folder, port, browser)
