"""The commands about revisions: release, reproduce, compare."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from optlab.cli.shared import (
    COMPARE,
    REPRODUCE,
    PipelineOption,
    complete_tags,
    enter_pipeline,
    load_settings,
    register_command,
)
from optlab.system import errors, git


def _complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """The runs that begin so, among those recorded at the revision that precedes them."""
    listed = git.get_output(
        "ls-tree", "-d", "--name-only", "--end-of-options", f"{context.params.get('revision')}:runs"
    )
    return [run for run in (listed or "").splitlines() if run.startswith(incomplete)]


@register_command(COMPARE, "optlab compare v1.0")
def compare(
    revisions: Annotated[
        list[str], typer.Argument(metavar="REV", help="Tags, branches or commits.", autocompletion=complete_tags)
    ],
    pipeline: PipelineOption = Path(),
) -> None:
    """Compare the present results with those of earlier git revisions."""
    folder = enter_pipeline(pipeline)
    settings = load_settings(folder)
    from optlab.analysis import revision_diff
    from optlab.orchestration import versus
    from optlab.system.git import Revision

    parsed = [Revision.parse(name) for name in revisions]
    versus.check_trained(settings, folder)
    print(revision_diff.build_report(settings, folder, parsed))


@register_command(REPRODUCE, "optlab release v1.0")
def release(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="The name of the git tag to make, such as v1.0.")],
    push: Annotated[bool, typer.Option("--push", help="Push the tag, and the outputs to the DVC remote.")] = False,
    mixed: Annotated[bool, typer.Option("--mixed", help="Accept runs from different environments.")] = False,
    pipeline: PipelineOption = Path(),
) -> None:
    """Commit the finished comparison, and tag it."""
    folder = enter_pipeline(pipeline)
    from optlab.orchestration import versus
    from optlab.reproduce import release as releasing

    compared = versus.collect_comparison(load_settings(folder), folder)
    commit = releasing.release(compared, folder, tag, mixed)
    print(f"{tag} is commit {commit[:12]}")
    print(releasing.tag_mlflow_runs(compared, folder, tag))
    for sentence in releasing.push(folder, tag) if push else []:
        print(sentence)


@register_command(REPRODUCE, "optlab reproduce v1.0 adam-0")
def reproduce(
    revision: Annotated[
        str, typer.Argument(metavar="REV", help="A tag, a branch or a commit.", autocompletion=complete_tags)
    ],
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Such as adam-0; default: all.", autocompletion=_complete_run),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Use this machine's settings, not the recorded ones.")] = False,
    fresh_env: Annotated[bool, typer.Option("--fresh-env", help="Install the packages that REV pins first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
    tuning: Annotated[bool, typer.Option("--tuning", help="Repeat the hyperparameter search, too.")] = False,
    pipeline: PipelineOption = Path(),
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
    folder = enter_pipeline(pipeline)
    from optlab.reproduce import report, rerun
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
            report.log_to_mlflow(revision, result, rerun.read_weights_sha256(revision, result.run))
    print(report.format_json(revision, results) if as_json else report.format_text(revision, results))
    return report.get_exit_status(results)
