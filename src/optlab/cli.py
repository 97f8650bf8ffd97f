"""The `optlab` command: check, add, new, repro, versus, submit, show, compare, ui, sync, and so on.

A shell imports this module for every completion, so each command itself imports what takes long to import (torch,
MLflow, the configuration's models).
"""

import collections
import contextlib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from optlab.system import errors, git, repository

if TYPE_CHECKING:
    from optlab.schema.parameters import Config

RUN, ADD, COMPARE, RANK = "Run", "Add an optimizer", "Compare", "Rank"
REPRODUCE, TRACK = "Reproduce", "Track with MLflow"


def _hide_types(params: list[Any]) -> list[Any]:
    """Show no `<bool>` beside a flag, and no `<str>` beside an argument."""
    for each in params:
        if isinstance(each, TyperArgument) or each.is_flag:
            each.display_type_rich = lambda ctx: ""
    return params


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which optimizer should I use on CIFAR-10, by how much is it better, and can I prove it?",
    epilog="Start with `optlab show`. `optlab COMMAND --help` has options and an example.",
)


def _register_command(panel: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
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
    """Handle the options of `optlab` itself."""


def _enter_root() -> Path:
    """Change to the repository root, whose record git merges by drivers from then on.

    Returns:
        The former working directory, relative to it.
    """
    folder = repository.enter_root()
    from optlab.orchestration import merge_driver

    merge_driver.install()
    return folder


def _load_settings(folder: Path, for_stages: bool = False) -> "Config":
    """Read the params.yaml of a pipeline whose record can be read, before the command imports torch."""
    from optlab.config import loader
    from optlab.orchestration import merge_driver
    from optlab.schema.parameters import PARAMS_FILE

    merge_driver.check_conflicts(folder)
    return loader.load_for_stages(folder) if for_stages else loader.load(folder / PARAMS_FILE)


_PipelineOption = Annotated[
    Path, typer.Option("--pipeline", metavar="FOLDER", help="The folder of its dvc.yaml; default: this one.")
]


def _enter_pipeline(
    pipeline: Path, problem: str = "no pipeline of this repository: name the folder of one, such as studies/optimizers"
) -> Path:
    """Change to the repository root; returns the folder of the pipeline that `--pipeline` names, relative to it.

    Raises:
        RevisionError: there is no pipeline; the message is `problem`.
    """
    folder = Path(os.path.normpath(_enter_root() / pipeline))
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    if folder.is_absolute() or ".." in folder.parts or not (folder / "dvc.yaml").is_file():
        raise errors.RevisionError(f"{folder}: {problem}")
    return repository.set_pipeline(folder)


def _complete_tags(incomplete: str) -> list[str]:
    return (git.get_output("tag", "--list", "--end-of-options", f"{incomplete}*") or "").splitlines()


@_register_command(RUN, "optlab check")
def check(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors, warnings and notes only.")] = False,
) -> None:
    """Check params.yaml, and take one step with each optimizer."""
    folder = _enter_root()
    settings = _load_settings(folder, for_stages=True)
    from optlab.analysis import environment_diff
    from optlab.orchestration import display, preflight_cache
    from optlab.schema.parameters import PARAMS_FILE, format_count
    from optlab.training import numerics

    numerics.prepare(settings.training)  # before anything imports torch
    preflight = preflight_cache.load_or_run(settings)
    for sentence in preflight.warnings:
        print(sentence, file=sys.stderr)
    for sentence in environment_diff.describe_stale_runs(settings, folder, preflight.environment):
        print(f"note: {sentence}", file=sys.stderr)
    if quiet:
        return
    count = format_count(len(settings.list_runs()), "run")
    print(f"{PARAMS_FILE}: no errors; {count}: {', '.join(settings.optimizers)}", flush=True)
    with display.show_status("measuring how much time bf16 saves"):
        saving = preflight_cache.load_or_measure_bf16_saving(settings, preflight)
    if saving >= _MIN_BF16_SAVING:
        print(_describe_bf16_saving(next(iter(settings.optimizers)), saving))


_MIN_BF16_SAVING = 0.1  # of a step's time; less is not worth a line


def _describe_bf16_saving(optimizer: str, saving: float) -> str:
    return (
        f"`training.precision: bf16` shortens a step of {optimizer} by {100 * saving:.0f} % on this machine; "
        "for Adam on zilliax, the test accuracy is equivalent to that in fp32, within 0.25 points: benchmarks/BF16.md"
    )


def _complete_optimizer(incomplete: str) -> list[str]:
    from optlab.config import catalog

    return [each.name for each in catalog.load().entries if each.name.startswith(incomplete)]


@_register_command(ADD, "optlab add nadam --range")
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
    from optlab.config import catalog, loader, params_editor
    from optlab.schema import parameters

    if name is None:
        print(catalog.format_table())
        return
    path = _enter_root() / parameters.PARAMS_FILE
    entry = catalog.find_entry(name)
    if entry.needs_output_weight:
        from optlab.preflight import model_check  # imports torch, which takes seconds

        entry = entry.fill_in_output_weight(model_check.find_output_weight(loader.load(path).model))
    text = entry.text_with_range if searched else entry.text
    params_editor.add_entry(path, name, text, entry.source if searched else entry.comment)
    print(f"{path}: added {name}: {text}: `optlab check` tries it, `optlab repro` trains it")


@_register_command(ADD, "optlab new my_optimizer")
def new(name: Annotated[str, typer.Argument(metavar="NAME", help="Such as my_optimizer.")]) -> None:
    """Start an optimizer of your own: a module, its test and its entry."""
    folder = _enter_root()
    from optlab.config import scaffold
    from optlab.schema import parameters

    path = folder / parameters.PARAMS_FILE
    module, test = scaffold.create_optimizer(name, path)
    print(f"{module}: yours to change; {path} has its entry: `optlab check` tries it, `optlab repro` trains it")
    print(
        f"{test}: `pytest {test}` says whether a killed training ends with the same weights (`make test` installs it)"
    )


@_register_command(RUN, "optlab repro --jobs 2")
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
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Add seeds to params.yaml until the verdicts are decided.")
    ] = False,
    question: Annotated[
        Literal["pairs", "best"] | None,
        typer.Option(help="Decide every pair (default), or only which is best; with --until-decided."),
    ] = None,
    at_most: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="No look at more seeds; with --until-decided.")
    ] = None,
) -> None:
    """Run the comparison: download, train, evaluate and compare.

    Only what has changed since the last time is run, as by `dvc repro`, but several runs at a time.
    """
    if cluster is None and (num_gpus or shared):
        raise errors.ClusterError("--num-gpus and --shared are for the nodes of a cluster: name it with --cluster")
    if not until_decided and (question or at_most):
        raise errors.ConfigError("--question and --at-most say when --until-decided ends: add it")
    shared = shared and shared.absolute()  # before the working directory changes
    folder = _enter_root()
    settings = _load_settings(folder, for_stages=True)
    if not (folder / "dvc.yaml").is_file():
        raise errors.ConfigError(f"{folder}: has no dvc.yaml: copy that of a study, such as studies/optimizers")
    from optlab.orchestration import repro
    from optlab.orchestration.executor import ClusterOptions

    options = ClusterOptions(cluster, num_gpus, shared, jobs) if cluster else None
    reproduce = functools.partial(
        repro.run_pipeline, folder=folder, jobs=jobs, cluster_options=options, allow_missing=allow_missing
    )
    if until_decided:
        from optlab.orchestration import sequential_repro

        sequential_repro.run(settings, folder, reproduce, question or "pairs", at_most)
    else:
        reproduce(settings)


@_register_command(RUN, "optlab sample")
def sample() -> None:
    """Try the whole pipeline on 600 images, in about a minute.

    It runs in a checkout of the last commit, in .optlab/sample: nothing else changes.
    """
    _enter_root()
    from optlab.orchestration import sample as sampling

    folder = sampling.run()
    print(f"All of it is in {folder}: {folder / 'reports' / 'report.html'}, and `optlab ui` there for MLflow's pages")


@_register_command(COMPARE, "optlab versus adan")
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
    fresh_seeds: Annotated[
        bool, typer.Option("--fresh-seeds", help="Confirm the optimizer with seeds that no attempt has seen.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs in parallel; default: cores ÷ training.threads.")
    ] = None,
) -> None:
    """Tune one optimizer, and compare it with those of a study."""
    here = _enter_root()
    from optlab.orchestration import versus_pipeline
    from optlab.orchestration.attempts import ATTEMPTS_FILE
    from optlab.schema.parameters import PARAMS_FILE

    base = Path(os.path.relpath(here / study)) if study else versus_pipeline.DEFAULT_STUDY
    folder = versus_pipeline.run(what, here / PARAMS_FILE, base, again, fresh_seeds, jobs)
    print(f"{folder}: its params.yaml, record and reports; commit it, and {base / ATTEMPTS_FILE}, to keep it")


@_register_command(COMPARE, "optlab show")
def show() -> None:
    """Print the verdict and the tables of the last comparison."""
    folder = _enter_root()
    settings = _load_settings(folder)
    from optlab.tracking.uploader_client import UploaderClient

    uploader = UploaderClient()  # loads MLflow in the background
    from optlab.analysis import tables
    from optlab.orchestration import versus
    from optlab.orchestration.display import show_status
    from optlab.tracking import comparison_sync

    versus.check_trained(settings, folder)
    compared = versus.collect_comparison(settings, folder)
    print(tables.describe(compared, folder))
    if not compared.challenger:
        with show_status("filling MLflow"):
            summary = comparison_sync.publish(compared, folder, uploader)
        print(summary)
    uploader.close()


@_register_command(COMPARE, "optlab report studies/optimizers")
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Of a pipeline, such as studies/optimizers; default: this one.")
    ] = Path(),
    language: Annotated[
        Literal["en", "zh"] | None, typer.Option(help="English or Chinese; default: the browser's language.")
    ] = None,
    snippet: Annotated[
        Literal["markdown", "latex"] | None, typer.Option(help="Print the verdict for a README or a paper instead.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is a display.")] = True,
) -> None:
    """Open the report, or print its verdict for a paper."""
    pipeline = _enter_pipeline(folder)
    if snippet:
        print(_render_snippet(pipeline, snippet, language or "en"))
        return
    from optlab.records import REPORTS_FOLDER
    from optlab.system.browser import open_page
    from optlab.system.text import format_place

    path = pipeline / REPORTS_FOLDER / "report.html"
    if not path.is_file():
        command = f"`optlab repro`{format_place(pipeline)}"
        raise errors.RecordError(f"{path}: there is no report yet: {command} makes it")
    print(path.absolute())
    if browser:
        open_page(path.absolute().as_uri() + (f"#{language}" if language else ""))


def _render_snippet(pipeline: Path, style: Literal["markdown", "latex"], language: Literal["en", "zh"]) -> str:
    settings = _load_settings(pipeline)
    from optlab.analysis import snippet
    from optlab.analysis.translation import use_language
    from optlab.orchestration import versus

    compared = versus.collect_comparison(settings, pipeline)
    with use_language(language):
        return snippet.render(compared, style)


@_register_command(COMPARE, "optlab predict cat.png")
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


def _complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the ids of the runs that the revision before them on the command line has recorded."""
    pipeline = Path(os.path.relpath(context.params.get("pipeline") or "."))
    folder = f"{context.params.get('revision')}:./{(pipeline / 'runs').as_posix()}"
    runs = git.get_output("ls-tree", "-d", "--name-only", "--end-of-options", folder) or ""
    return [run for run in runs.splitlines() if run.startswith(incomplete)]


@_register_command(COMPARE, "optlab compare v1.0")
def compare(
    revisions: Annotated[
        list[str], typer.Argument(metavar="REV", help="Tags, branches or commits.", autocompletion=_complete_tags)
    ],
    pipeline: _PipelineOption = Path(),
) -> None:
    """Compare the present results with those of earlier git revisions."""
    folder = _enter_pipeline(pipeline)
    settings = _load_settings(folder)
    from optlab.analysis import revision_diff
    from optlab.orchestration import versus
    from optlab.system.git import Revision

    parsed = [Revision.parse(name) for name in revisions]
    versus.check_trained(settings, folder)
    print(revision_diff.build_report(settings, folder, parsed))


@_register_command(REPRODUCE, "optlab release v1.0")
def release(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="The name of the git tag to make, such as v1.0.")],
    push: Annotated[bool, typer.Option("--push", help="Push the tag, and the outputs to the DVC remote.")] = False,
    mixed: Annotated[bool, typer.Option("--mixed", help="Accept runs from different environments.")] = False,
    pipeline: _PipelineOption = Path(),
) -> None:
    """Commit the finished comparison, and tag it."""
    folder = _enter_pipeline(pipeline)
    from optlab.orchestration import versus
    from optlab.reproduce import release as releasing

    compared = versus.collect_comparison(_load_settings(folder), folder)
    commit = releasing.release(compared, folder, tag, mixed)
    print(f"{tag} is commit {commit[:12]}")
    print(releasing.tag_mlflow_runs(compared, folder, tag))
    for sentence in releasing.push(folder, tag) if push else []:
        print(sentence)


@_register_command(REPRODUCE, "optlab reproduce v1.0 adam-0")
def reproduce(
    revision: Annotated[
        str, typer.Argument(metavar="REV", help="A tag, a branch or a commit.", autocompletion=_complete_tags)
    ],
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Such as adam-0; default: all.", autocompletion=_complete_run),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Use this machine's settings, not the recorded ones.")] = False,
    fresh_env: Annotated[bool, typer.Option("--fresh-env", help="Install the packages that REV pins first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
    tuning: Annotated[bool, typer.Option("--tuning", help="Repeat the hyperparameter search, too.")] = False,
    pipeline: _PipelineOption = Path(),
) -> None:
    """Train recorded runs again, and check that they are identical.

    Exit status: 0 identical, 3 within tolerance, 1 different, 2 could not be run.
    """
    try:
        status = _reproduce(pipeline, revision, runs or [], here, fresh_env, as_json, tuning)
    except (errors.OptlabError, OSError) as error:
        print(f"error: {errors.summarize_error(error)}", file=sys.stderr)
        status = 2
    raise typer.Exit(status)


def _reproduce(
    pipeline: Path, name: str, names: list[str], here: bool, fresh: bool, as_json: bool, tuning: bool
) -> int:
    folder = _enter_pipeline(pipeline)
    from optlab.reproduce import output_diff, rerun
    from optlab.system.git import Revision

    revision = Revision.parse(name, folder)
    runs = rerun.select_runs(revision, names)
    differing = {} if fresh else rerun.find_package_differences(revision, runs)
    for package, (recorded, installed) in differing.items():
        print(f"warning: {package} {recorded} was recorded, {installed} is installed", file=sys.stderr)
    results = []
    with contextlib.closing(rerun.reproduce(revision, runs, here, fresh, as_json, tuning)) as reproduced:
        for result in reproduced:
            results.append(result)
            output_diff.log_to_mlflow(revision, result, rerun.read_weights_sha256(revision, result.run))
    print(output_diff.format_json(revision, results) if as_json else output_diff.format_text(revision, results))
    return output_diff.get_exit_status(results)


@_register_command(RANK, "optlab submit radam")
def submit(
    what: Annotated[
        str,
        typer.Argument(
            metavar="OPTIMIZER", help="A module of custom/, an entry's name, or one that `optlab add` lists."
        ),
    ],
    ranking: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the ranking's protocol; default: ranking.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs in parallel; default: cores ÷ training.threads.")
    ] = None,
) -> None:
    """Tune and train an optimizer by the protocol of a ranking."""
    here = _enter_root()
    from optlab.ranking import protocol, submission, table
    from optlab.schema.parameters import PARAMS_FILE

    folder = Path(os.path.relpath(here / ranking)) if ranking else protocol.DEFAULT_RANKING
    record = submission.submit(what, here / PARAMS_FILE, folder, jobs)
    try:
        table.write(protocol.Ranking.load(folder))
    except (errors.ConfigError, errors.RecordError) as error:
        raise type(error)(
            f"{record}: the record is complete, but {folder}/RANKING.md is not written: {error}"
        ) from None
    print(f"{record}: the record is complete: commit all of {folder}, then run `optlab verify {record}`")


@_register_command(RANK, "optlab verify ranking/radam")
def verify(
    record: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a record, such as ranking/radam.")],
    replicate: Annotated[
        int | None, typer.Option(metavar="N", help="Train replicate N again; default: one drawn at random.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Train all replicates again.")] = False,
    base: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Refuse changes since REV that are not part of the record.",
                     autocompletion=_complete_tags),
    ] = None,
) -> None:  # fmt: skip
    """Check a record of a ranking, and train a replicate again.

    Exit status: 0 identical, 1 refused or different, 2 could not be run.
    """
    try:
        status = _verify(record, replicate, everything, base)
    except (errors.OptlabError, OSError) as error:
        print(f"error: {errors.summarize_error(error)}", file=sys.stderr)
        status = 2
    raise typer.Exit(status)


def _verify(folder: Path, replicate: int | None, everything: bool, base: str | None) -> int:
    pipeline = _enter_pipeline(folder, "no record of a ranking: name the folder of one, such as ranking/radam")
    settings = _load_settings(pipeline)
    from optlab.training import numerics

    numerics.prepare(settings.training)  # before anything imports torch
    from optlab.ranking import verification
    from optlab.reproduce import output_diff
    from optlab.system.git import Revision

    if everything and replicate is not None:
        raise errors.ConfigError("--all takes every replicate, and --replicate one: leave one of them out")
    record = verification.RankingRecord.load(pipeline)
    seeds = verification.draw_seeds(record.config, replicate, everything)
    for check in verification.check_files(record, base):
        if check.problem:
            print(f"{pipeline}: refused: {check.problem}")
            return 1
        print(f"ok  {check.title}", flush=True)
    for note in verification.list_notes(record):
        print(f"note: {note}", file=sys.stderr)
    print(verification.describe_draw(record.config, seeds), flush=True)
    results = list(verification.repeat(record, seeds))
    print(output_diff.format_text(Revision.parse("HEAD", pipeline), results))
    verdicts = {result.verdict for result in results}
    print(f"{pipeline}: {'verified' if verdicts == {'identical'} else 'not verified'}")
    return 2 if "not run" in verdicts else int(verdicts != {"identical"})


@_register_command(RANK, "optlab rank")
def rank(
    ranking: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Folder of the ranking's protocol; default: ranking.")
    ] = None,
) -> None:
    """Write the table and the report of a ranking."""
    here = _enter_root()
    from optlab.ranking import protocol, table

    folder = Path(os.path.relpath(here / ranking)) if ranking else protocol.DEFAULT_RANKING
    print(table.write(protocol.Ranking.load(folder)), end="")


@_register_command(COMPARE, "optlab across --reference adam")
def across(
    studies: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Folder with the studies; default: studies.")
    ] = None,
    reference: Annotated[
        str, typer.Option(metavar="NAME", help="Optimizer whose time to the target is the unit.")
    ] = "adamw",
) -> None:
    """Compare optimizers across all studies with a target."""
    here = _enter_root()
    folder = Path(os.path.relpath(here / studies)) if studies else Path("studies")
    from optlab.ranking import across_page

    print(across_page.write(folder, reference), end="")


@_register_command(TRACK, "optlab ui --port 5001")
def ui(
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="N", help="MLflow's port, on this machine only.")
    ] = 5000,
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is a display.")] = True,
    pipeline: _PipelineOption = Path(),
) -> None:
    """Open MLflow: the curves and the table of all runs."""
    folder = _enter_pipeline(pipeline)
    os.chdir(repository.get_state_root())
    from optlab.tracking import webapp

    webapp.open_pages(folder, port, browser)


@_register_command(TRACK, "optlab sync --from v1.0")
def sync(
    revision: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="REV", help="Fill MLflow from this git revision's record.", autocompletion=_complete_tags
        ),
    ] = None,
    pipeline: _PipelineOption = Path(),
) -> None:
    """Send MLflow the runs it lacks, or those of a git revision."""
    if pipeline != Path() and not revision:
        raise errors.ConfigError("--pipeline works only with --from REV: add it")
    folder = _enter_pipeline(pipeline) if revision else _enter_root()
    os.chdir(repository.get_state_root())  # has an experiment's event logs
    from optlab.system.git import Revision
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

    sent, own_problem = 0, None
    try:
        try:
            for name in uploader.push_all():
                print(f"sent {name}", flush=True)
                sent += 1
        except errors.StorageError as error:  # of one log: the others were sent
            own_problem = error
        for experiment in comparison_view.update_outdated_views():
            print(f"sent the comparison of {experiment}", flush=True)
    except Exception as error:  # whatever MLflow raises
        raise errors.TrackingError(
            f"MLflow at {mlflow_store.get_redacted_uri()} does not take the rest now "
            f"({mlflow_store.describe_error(error)}): "
            f"all is in .optlab/event_logs: repeat the command later"
        ) from None
    if own_problem:
        raise own_problem
    return sent


@_register_command(TRACK, "optlab clean")
def clean() -> None:
    """Delete the event logs of older runs that MLflow has completely."""
    _enter_root()
    from optlab.tracking import maintenance

    freed, removed, kept = 0, 0, collections.Counter[str]()
    for result in maintenance.prune():
        if result.kept_reason:
            kept[result.kept_reason] += 1
        else:
            print(f"removed {result.name}", flush=True)
            removed, freed = removed + 1, freed + result.freed_bytes
    print(f"{removed} event log{'' if removed == 1 else 's'} removed, {freed:,} bytes freed; {kept.total()} kept")
    for why, count in kept.items():
        print(f"  {count}: {why}")


def main() -> None:
    """Entry point of the `optlab` command."""
    errors.run_main(app)
