"""The commands that work on the params.yaml and the record that are there."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from optlab.cli.shared import ADD, COMPARE, RUN, load_settings, register_command
from optlab.system import errors, repository


@register_command(RUN, "optlab check")
def check() -> None:
    """Check params.yaml: every key, class and value, without training."""
    folder = repository.enter_root()
    from optlab.config import loader
    from optlab.schema.parameters import PARAMS_FILE

    settings = loader.load_for_stages(folder)
    from optlab.analysis import environment_diff
    from optlab.orchestration import preflight_cache
    from optlab.schema.parameters import format_count
    from optlab.training import numerics

    numerics.prepare(settings.training)  # before anything imports torch
    found = preflight_cache.load_or_run(settings)
    for sentence in found.warnings:
        print(sentence, file=sys.stderr)
    for sentence in environment_diff.describe_stale_runs(settings, folder, found.environment):
        print(f"note: {sentence}", file=sys.stderr)
    print(f"{PARAMS_FILE}: {format_count(len(settings.list_runs()), 'run')}: {', '.join(settings.optimizers)}")


def _complete_optimizer(incomplete: str) -> list[str]:
    from optlab.config import catalog

    return [each.name for each in catalog.load().entries if each.name.startswith(incomplete)]


@register_command(ADD, "optlab add nadam --range")
def add(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Such as nadam; default: list them.", autocompletion=_complete_optimizer),
    ] = None,
    searched: Annotated[
        bool, typer.Option("--range", help="Tune the learning rate in a range about its usual value.")
    ] = False,
) -> None:
    """Add a well-known optimizer to params.yaml, or list all of them."""
    from optlab.config import catalog, scaffold
    from optlab.schema import parameters

    if name is None:
        print(catalog.format_table())
        return
    path = repository.enter_root() / parameters.PARAMS_FILE
    known = catalog.find_entry(name)
    entry = known.text_with_range if searched else known.text
    scaffold.add_entry(path, name, entry, known.source if searched else known.comment)
    print(f"{path}: added {name}: {entry}: `optlab check` tries it, `dvc repro` trains it")


@register_command(ADD, "optlab new my_optimizer")
def new(name: Annotated[str, typer.Argument(metavar="NAME", help="Such as my_optimizer.")]) -> None:
    """Start an optimizer of your own: a module, its test and its entry."""
    folder = repository.enter_root()
    from optlab.config import scaffold
    from optlab.schema import parameters

    path = folder / parameters.PARAMS_FILE
    module, test = scaffold.create_optimizer(name, path)
    print(f"{module}: yours to change; {path} has its entry: `optlab check` tries it, `dvc repro` trains it")
    print(f"{test}: `pytest {test}` says whether a killed training would go on to the same weights")


@register_command(RUN, "optlab repro --jobs 2")
def repro(
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs in parallel; default: cores ÷ training.threads.")
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Do not repeat a run of which only weights or predictions are missing."),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", envvar="RAY_ADDRESS", help="Train on a Ray cluster, such as 10.0.0.1:6379."),
    ] = None,
    num_gpus: Annotated[
        float, typer.Option(min=0, metavar="N", help="GPUs of a node for each run, such as 0.5; with --cluster.")
    ] = 0,
    shared: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A folder that all nodes see: runs of a dead node resume from it."),
    ] = None,
) -> None:
    """Run the comparison: download, train, evaluate and compare.

    Only what has changed since the last time is run, as by `dvc repro`, but several runs at a time.
    """
    if cluster is None and (num_gpus or shared):
        raise errors.ClusterError("--num-gpus and --shared are for the nodes of a cluster: name it with --cluster")
    shared = shared and shared.absolute()  # while we are where it was named
    folder = repository.enter_root()
    from optlab.config import loader

    settings = loader.load_for_stages(folder)
    from optlab.orchestration import repro
    from optlab.orchestration.executor import ClusterOptions

    access = ClusterOptions(cluster, num_gpus, shared, jobs) if cluster else None
    repro.run_pipeline(settings, folder, jobs, access, allow_missing=allow_missing)


@register_command(RUN, "optlab sample")
def sample() -> None:
    """Try the whole pipeline on 600 images, in about a minute.

    It runs in a checkout of the last commit, in .optlab/sample: nothing else changes.
    """
    repository.enter_root()
    from optlab.orchestration import sample as sampling

    folder = sampling.run()
    print(f"All of it is in {folder}: {folder / 'reports' / 'report.html'}, and `optlab ui` there for MLflow's pages")


@register_command(COMPARE, "optlab versus adan")
def versus(
    what: Annotated[
        str,
        typer.Argument(
            metavar="OPTIMIZER", help="A module of custom/, an entry's name, or one that `optlab add` lists."
        ),
    ],
    study: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The study to compare with; default: studies/optimizers.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Train the study's runs again where their environment differs.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs in parallel; default: cores ÷ training.threads.")
    ] = None,
) -> None:
    """Tune one optimizer, and compare it with those of a study."""
    here = repository.enter_root()
    from optlab.orchestration import versus_pipeline
    from optlab.schema.parameters import PARAMS_FILE

    base = Path(os.path.relpath(here / study)) if study else versus_pipeline.DEFAULT_STUDY
    folder = versus_pipeline.run(what, here / PARAMS_FILE, base, again, jobs)
    print(f"{folder}: its params.yaml, record and reports; commit it to keep it")


@register_command(COMPARE, "optlab show")
def show() -> None:
    """Print the verdict and the tables of the last comparison."""
    folder = repository.enter_root()
    settings = load_settings(folder)
    from optlab.tracking.uploader_client import UploaderClient

    uploader = UploaderClient()  # it loads MLflow meanwhile
    from optlab.analysis import tables
    from optlab.orchestration import versus
    from optlab.orchestration.display import show_status
    from optlab.tracking import comparison_sync

    versus.check_trained(settings, folder)
    compared = versus.collect_comparison(settings, folder)
    print(tables.describe(compared, folder))
    if not compared.challenger:
        with show_status("filling MLflow"):
            told = comparison_sync.publish(compared, folder, uploader)
        print(told)
    uploader.close()


@register_command(COMPARE, "optlab predict cat.png")
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files of any size and format.")],
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .safetensors file; default: the best run's.")
    ] = None,
) -> None:
    """Classify images with the weights of the best run."""
    from optlab.analysis import inference

    model = inference.load_model(weights)
    for path, ranked in inference.predict(model, images):
        print(f"{path}  " + ", ".join(f"{name} {probability:.1%}" for name, probability in ranked[:3]))
