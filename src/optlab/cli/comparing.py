"""The commands that work on the params.yaml and the record that are there."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from optlab.cli.shared import app, settings_of
from optlab.system import errors, repository


@app.command()
def check() -> None:
    """Check the params.yaml of this folder, whole, before anything is run."""
    folder = repository.enter()
    settings = settings_of(folder)
    from optlab.config.parameters import PARAMS
    from optlab.execution import checked
    from optlab.results import origin
    from optlab.system.wording import counted
    from optlab.training import numerics

    numerics.prepare(settings.training)  # before anything imports torch
    found = checked.ensure(settings)
    for sentence in found.warnings:
        print(sentence, file=sys.stderr)
    for sentence in origin.made_elsewhere(settings, folder, found.conditions):
        print(f"note: {sentence}", file=sys.stderr)
    print(f"{PARAMS}: {counted(len(settings.runs()), 'run')}: {', '.join(settings.optimizers)}")


def _known(incomplete: str) -> list[str]:
    from optlab.config import zoo

    return [each.name for each in zoo.KNOWN if each.name.startswith(incomplete)]


@app.command()
def add(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Such as lion; default: list them.", autocompletion=_known)
    ] = None,
    searched: Annotated[bool, typer.Option("--range", help="With a range to tune the learning rate in.")] = False,
) -> None:
    """Add a ready entry for a well-known optimizer to the params.yaml of this folder, or list those there are."""
    from optlab.config import editing, parameters, zoo

    if name is None:
        print(zoo.table())
        return
    path = repository.enter() / parameters.PARAMS
    known = zoo.find(name)
    entry = known.searched if searched else known.entry
    editing.add(path, name, entry, known.source if searched else known.comment)
    print(f"{path}: added {name}: {entry}: `optlab check` tries it, `dvc repro` trains it")


@app.command()
def new(name: Annotated[str, typer.Argument(metavar="NAME", help="Such as my_optimizer.")]) -> None:
    """Begin an optimizer of your own: a module in custom/ that runs as it is, a test of it, and its entry."""
    folder = repository.enter()
    from optlab.config import parameters, starting

    path = folder / parameters.PARAMS
    module, test = starting.begin(name, path)
    print(f"{module}: yours to change; {path} has its entry: `optlab check` tries it, `dvc repro` trains it")
    print(f"{test}: `pytest {test}` says whether a killed training would go on to the same weights")


@app.command()
def repro(
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs, or trials, at a time; default: as many as there is room for.")
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Train no run again of which only the weights or predictions are missing."
        ),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", envvar="RAY_ADDRESS", help="Train on a Ray cluster, such as 10.0.0.1:6379."),
    ] = None,
    num_gpus: Annotated[
        float, typer.Option(min=0, help="Of a node of the cluster, for each run; a share is enough.")
    ] = 0,
    shared: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="One that all nodes see: what a dead node has begun goes on from there."),
    ] = None,
) -> None:
    """Do what `dvc repro` does, with the runs side by side, here or on a cluster."""
    if cluster is None and (num_gpus or shared):
        raise errors.ClusterError("--num-gpus and --shared are for the nodes of a cluster: name it with --cluster")
    shared = shared and shared.absolute()  # while we are where it was named
    folder = repository.enter()
    settings = settings_of(folder)
    from optlab.execution import side_by_side
    from optlab.execution.orders import Access

    access = Access(cluster, num_gpus, shared, jobs) if cluster else None
    side_by_side.repro(settings, folder, jobs, access, allow_missing=allow_missing)


@app.command()
def versus(
    what: Annotated[
        str,
        typer.Argument(
            metavar="OPTIMIZER", help="A module of custom/, an entry's name, or one that `optlab add` lists."
        ),
    ],
    study: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Whose record is compared with; default: studies/optimizers.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Train again what was recorded under other conditions.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default: as many as there is room for.")
    ] = None,
) -> None:
    """Tune and confirm one optimizer, and compare it with those that a study has on record."""
    here = repository.enter()
    from optlab.config.parameters import PARAMS
    from optlab.execution import challenge

    base = Path(os.path.relpath(here / study)) if study else challenge.STUDY
    folder = challenge.run(what, here / PARAMS, base, again, jobs)
    print(f"{folder}: its params.yaml, record and reports; commit it to keep it")


@app.command()
def show() -> None:
    """Print the comparison again, and the addresses to open in MLflow."""
    folder = repository.enter()
    from optlab.execution import versus
    from optlab.results import tables
    from optlab.tracking import publish

    settings = settings_of(folder)
    versus.check_trained(settings, folder)
    compared = versus.compared(settings, folder)
    print(tables.text(compared))
    if not compared.challenger:
        print(publish.publish(compared, folder))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files of any size and format.")],
    weights: Annotated[Path | None, typer.Option(help="A .safetensors file; default: the champion's.")] = None,
) -> None:
    """Name the class of each image, with the probabilities of the three likeliest classes."""
    from optlab.results import prediction

    model = prediction.load(weights)
    for path, ranked in prediction.predict(model, images):
        print(f"{path}  " + ", ".join(f"{name} {probability:.1%}" for name, probability in ranked[:3]))
