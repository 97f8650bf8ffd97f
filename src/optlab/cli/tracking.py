"""The command that opens MLflow's pages.

The commands about what MLflow has, and the journals that it is filled from.
"""

import collections
import os
from pathlib import Path
from typing import Annotated

import typer

from optlab.cli.shared import TRACK, PipelineOption, complete_tags, enter_pipeline, register_command
from optlab.system import errors, repository


@register_command(TRACK, "optlab ui --port 5001")
def ui(
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="N", help="MLflow's port, on this machine only.")
    ] = 5000,
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is a display.")] = True,
    pipeline: PipelineOption = Path(),
) -> None:
    """Open MLflow: the curves and the table of all runs."""
    folder = enter_pipeline(pipeline)
    os.chdir(repository.get_state_root())
    from optlab.tracking import webapp

    webapp.open_pages(folder, port, browser)


@register_command(TRACK, "optlab sync --from v1.0")
def sync(
    revision: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="REV", help="Fill MLflow from this git revision's record.", autocompletion=complete_tags
        ),
    ] = None,
    pipeline: PipelineOption = Path(),
) -> None:
    """Send MLflow the runs it lacks, or those of a git revision."""
    folder = enter_pipeline(pipeline) if revision else repository.enter_root()
    os.chdir(repository.get_state_root())  # an experiment's journals are there
    from optlab.system.revision import Revision
    from optlab.tracking import maintenance, mlflow_store, uploader

    sent = _upload()
    if revision:
        for sentence in maintenance.backfill_runs(Revision.parse(revision, folder)):
            print(sentence, flush=True)
        sent += _upload()
    refused = uploader.list_refused_logs()
    exception = f" but what it refuses, which is in .optlab/event_logs, of {', '.join(refused)}" if refused else ""
    summary = f"{sent or 'no'} run{'' if sent == 1 else 's'} had something to send"
    print(f"MLflow at {mlflow_store.get_redacted_uri()} has everything{exception}: {summary}")


def _upload() -> int:
    from optlab.tracking import comparison_view, mlflow_store, uploader

    sent = 0
    try:
        for name in uploader.push_all():
            print(f"sent {name}", flush=True)
            sent += 1
        for experiment in comparison_view.update_outdated_views():
            print(f"sent the comparison of {experiment}", flush=True)
    except Exception as error:  # whatever MLflow raises
        raise errors.TrackingError(
            f"MLflow at {mlflow_store.get_redacted_uri()} does not take the rest now "
            f"({mlflow_store.describe_error(error)}): "
            f"all is in .optlab/event_logs: repeat the command later"
        ) from None
    return sent


@register_command(TRACK, "optlab clean")
def clean() -> None:
    """Delete the event logs of older runs that MLflow has completely."""
    repository.enter_root()
    from optlab.tracking import maintenance

    freed, removed, kept = 0, 0, collections.Counter[str]()
    for result in maintenance.prune():
        if result.kept_reason:
            kept[result.kept_reason] += 1
        else:
            print(f"removed {result.name}", flush=True)
            removed, freed = removed + 1, freed + result.freed_bytes
    print(f"{removed} journal{'' if removed == 1 else 's'} removed, {freed:,} bytes freed; {kept.total()} kept")
    for why, count in kept.items():
        print(f"  {count}: {why}")
