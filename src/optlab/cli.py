"""The command line: `optlab check`, `add`, `new`, `repro`, `show`, `compare`, `sync`, `clean`, `predict`, and so on.

A shell runs this module for every completion: what takes long to import (torch, MLflow, the configuration's models) is
imported by the commands that need it.
"""

import collections
import contextlib
import os
import sys
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


def _settings(folder: Path) -> "Config":
    """The params.yaml of a folder; it costs no torch, and is checked before anything that does is imported."""
    from optlab.config import parameters, reading

    return reading.load(folder / parameters.PARAMS)


Pipeline = Annotated[
    Path, typer.Option("--pipeline", metavar="FOLDER", help="The folder of its dvc.yaml; default: this one.")
]


def _enter(pipeline: Path) -> Path:
    """Go to the top of the repository; returns the folder of the pipeline that is meant, relative to it."""
    folder = Path(os.path.normpath(repository.enter() / pipeline))
    if folder.is_absolute() or ".." in folder.parts or not (folder / "dvc.yaml").is_file():
        raise errors.RevisionError(
            f"{folder}: no pipeline of this repository: name the folder of one with `--pipeline`"
        )
    return folder


def _tags(incomplete: str) -> list[str]:
    """The git tags that begin so, for the shell to complete."""
    return (git.ask("tag", "--list", "--end-of-options", f"{incomplete}*") or "").splitlines()


def _recorded(context: typer.Context, incomplete: str) -> list[str]:
    """The runs that begin so, among those recorded at the revision that precedes them."""
    listed = git.ask("ls-tree", "-d", "--name-only", "--end-of-options", f"{context.params.get('revision')}:runs")
    return [run for run in (listed or "").splitlines() if run.startswith(incomplete)]


@app.command()
def check() -> None:
    """Check the params.yaml of this folder, whole, before anything is run."""
    folder = repository.enter()
    settings = _settings(folder)
    from optlab.config.parameters import PARAMS
    from optlab.execution import checked
    from optlab.results import origin
    from optlab.training import numerics

    numerics.prepare(settings.training)  # before anything imports torch
    found = checked.ensure(settings)
    for sentence in found.warnings:
        print(sentence, file=sys.stderr)
    for sentence in origin.made_elsewhere(settings, folder, found.conditions):
        print(f"note: {sentence}", file=sys.stderr)
    count = len(settings.runs())
    print(f"{PARAMS}: {count} run{'s' if count > 1 else ''}: {', '.join(settings.optimizers)}")


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
        int | None, typer.Option(min=1, help="Runs at a time; default: as many as there is room for.")
    ] = None,
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
    folder = repository.enter()
    settings = _settings(folder)
    from optlab.execution import side_by_side
    from optlab.execution.orders import Access

    access = Access(cluster, num_gpus, shared.absolute() if shared else None, jobs) if cluster else None
    side_by_side.repro(settings, folder, jobs, access)


@app.command()
def show() -> None:
    """Print the comparison again, and the addresses to open in MLflow."""
    folder = repository.enter()
    from optlab.results import comparison, tables
    from optlab.tracking import publish

    compared = comparison.collect(_settings(folder), folder)
    print(tables.text(compared))
    print(publish.publish(compared, folder))


@app.command()
def compare(
    revisions: Annotated[
        list[str], typer.Argument(metavar="REV…", help="Tags, branches or commits.", autocompletion=_tags)
    ],
    pipeline: Pipeline = Path(),
) -> None:
    """Put the optimizers of other revisions beside the present ones: what has changed, and can it be told?"""
    folder = _enter(pipeline)
    settings = _settings(folder)
    from optlab.results import across
    from optlab.system.revision import Revision

    print(across.report(settings, folder, [Revision.parse(name) for name in revisions]))


@app.command()
def sync(
    revision: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="REV", help="Fill MLflow from this git revision's record.", autocompletion=_tags
        ),
    ] = None,
    pipeline: Pipeline = Path(),
) -> None:
    """Send MLflow what it has not got yet: a server was away, or the runs were made elsewhere."""
    folder = _enter(pipeline) if revision else repository.enter()
    os.chdir(repository.home())  # an experiment's journals are there
    from optlab.system.revision import Revision
    from optlab.tracking import backfill, server

    sent = _send()
    if revision:
        for sentence in backfill.write(Revision.parse(revision, folder)):
            print(sentence, flush=True)
        sent += _send()
    print(
        f"MLflow at {server.uri()} has everything: {sent or 'no'} run{'' if sent == 1 else 's'} had something to send"
    )


def _send() -> int:
    from optlab.tracking import replay, server

    sent = 0
    try:
        for name in replay.push_all():
            print(f"sent {name}", flush=True)
            sent += 1
    except Exception as error:  # whatever MLflow raises
        raise errors.TrackingError(
            f"MLflow at {server.uri()} does not take the rest now ({errors.one_line(error)[:200]}): "
            f"all is in .optlab/journal: repeat the command later"
        ) from None
    return sent


@app.command()
def clean() -> None:
    """Remove the journals that MLflow has whole, but for those of the present record."""
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


@app.command()
def release(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="The name of the git tag to make, such as v1.0.")],
    push: Annotated[bool, typer.Option("--push", help="Push the tag, and the outputs to the DVC remote.")] = False,
    mixed: Annotated[bool, typer.Option("--mixed", help="Accept runs made under different conditions.")] = False,
    pipeline: Pipeline = Path(),
) -> None:
    """Commit the finished comparison and tag it, with its table as the tag's message."""
    folder = _enter(pipeline)
    from optlab.reproduce import release as releasing
    from optlab.results import comparison

    compared = comparison.collect(_settings(folder), folder)
    commit = releasing.release(compared, folder, tag, mixed)
    print(f"{tag} is commit {commit[:12]}")
    print(releasing.mark(compared, folder, tag))
    for sentence in releasing.push(folder, tag) if push else []:
        print(sentence)


@app.command()
def reproduce(
    revision: Annotated[str, typer.Argument(metavar="REV", help="A tag, a branch or a commit.", autocompletion=_tags)],
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]…", help="Such as adam-0; default: all.", autocompletion=_recorded),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Under this machine's own conditions.")] = False,
    fresh_env: Annotated[bool, typer.Option("--fresh-env", help="Install the packages that REV pins, first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
    tuning: Annotated[bool, typer.Option("--tuning", help="Compute their tunings again, too.")] = False,
    pipeline: Pipeline = Path(),
) -> None:
    """Train a past run again from its git revision, and say whether it is the same.

    Exit status: 0 identical, 3 within tolerance, 1 different, 2 could not be run.
    """
    try:
        status = _reproduce(pipeline, revision, runs or [], here, fresh_env, as_json, tuning)
    except errors.OptlabError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    raise typer.Exit(status)


def _reproduce(
    pipeline: Path, name: str, names: list[str], here: bool, fresh: bool, as_json: bool, tuning: bool
) -> int:
    folder = _enter(pipeline)
    from optlab.reproduce import rerun, verdicts
    from optlab.system.revision import Revision

    revision = Revision.parse(name, folder)
    runs = rerun.runs_of(revision, names)
    differing = {} if fresh else rerun.package_differences(revision, runs)
    for package, (recorded, installed) in differing.items():
        print(f"warning: {package} {recorded} was recorded, {installed} is installed", file=sys.stderr)
    results = []
    with contextlib.closing(rerun.reproduce(revision, runs, here, fresh, as_json, tuning)) as reproduced:
        for result in reproduced:
            verdicts.log(revision, result, rerun.recorded_weights(revision, result.run))
            results.append(result)
    print(verdicts.as_json(revision, results) if as_json else verdicts.as_text(revision, results))
    return verdicts.exit_status(results)


def main() -> None:
    """Entry point of the `optlab` command."""
    errors.run(app)
