"""The commands about what MLflow has, and the journals that it is filled from."""

import collections
import os
from pathlib import Path
from typing import Annotated

import typer

from optlab.cli.shared import TRACK, Pipeline, command, enter, tags
from optlab.system import errors, repository


@command(TRACK, "optlab sync --from v1.0")
def sync(
    revision: Annotated[
        str | None,
        typer.Option("--from", metavar="REV", help="Fill MLflow from this git revision's record.", autocompletion=tags),
    ] = None,
    pipeline: Pipeline = Path(),
) -> None:
    """Send MLflow the runs it lacks, or those of a git revision."""
    folder = enter(pipeline) if revision else repository.enter()
    os.chdir(repository.home())  # an experiment's journals are there
    from optlab.system.revision import Revision
    from optlab.tracking import backfill, replay, server

    sent = _send()
    if revision:
        for sentence in backfill.write(Revision.parse(revision, folder)):
            print(sentence, flush=True)
        sent += _send()
    refused = replay.refused()
    but = f" but what it refuses, which is in .optlab/journal, of {', '.join(refused)}" if refused else ""
    had = f"{sent or 'no'} run{'' if sent == 1 else 's'} had something to send"
    print(f"MLflow at {server.shown()} has everything{but}: {had}")


def _send() -> int:
    from optlab.tracking import pending, replay, server

    sent = 0
    try:
        for name in replay.push_all():
            print(f"sent {name}", flush=True)
            sent += 1
        for experiment in pending.show_all():
            print(f"sent the comparison of {experiment}", flush=True)
    except Exception as error:  # whatever MLflow raises
        raise errors.TrackingError(
            f"MLflow at {server.shown()} does not take the rest now ({server.describe(error)}): "
            f"all is in .optlab/journal: repeat the command later"
        ) from None
    return sent


@command(TRACK, "optlab clean")
def clean() -> None:
    """Delete the event logs of older runs that MLflow has completely."""
    repository.enter()
    from optlab.tracking import cleaning

    freed, removed, kept = 0, 0, collections.Counter[str]()
    for verdict in cleaning.clean():
        if verdict.kept:
            kept[verdict.kept] += 1
        else:
            print(f"removed {verdict.name}", flush=True)
            removed, freed = removed + 1, freed + verdict.freed
    print(f"{removed} journal{'' if removed == 1 else 's'} removed, {freed:,} bytes freed; {kept.total()} kept")
    for why, count in kept.items():
        print(f"  {count}: {why}")
