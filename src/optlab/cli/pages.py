"""The command that opens MLflow's pages."""

import os
from pathlib import Path
from typing import Annotated

import typer

from optlab.cli.shared import Pipeline, app, enter
from optlab.system import repository


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where MLflow listens, on this machine only.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is a display.")] = True,
    pipeline: Pipeline = Path(),
) -> None:
    """Open MLflow's pages of the comparison: its curves, and the table of its runs."""
    folder = enter(pipeline)
    os.chdir(repository.home())
    from optlab.tracking import ui as pages

    pages.open_pages(folder, port, browser)
