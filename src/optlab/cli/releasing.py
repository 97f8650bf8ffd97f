"""The commands about revisions: release, reproduce, compare."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from optlab.cli.shared import COMPARE, REPRODUCE, Pipeline, command, enter, settings_of, tags
from optlab.system import errors, git


def _recorded(context: typer.Context, incomplete: str) -> list[str]:
    """The runs that begin so, among those recorded at the revision that precedes them."""
    listed = git.ask("ls-tree", "-d", "--name-only", "--end-of-options", f"{context.params.get('revision')}:runs")
    return [run for run in (listed or "").splitlines() if run.startswith(incomplete)]


@command(COMPARE, "optlab compare v1.0")
def compare(
    revisions: Annotated[
        list[str], typer.Argument(metavar="REV", help="Tags, branches or commits.", autocompletion=tags)
    ],
    pipeline: Pipeline = Path(),
) -> None:
    """Compare the present results with those of earlier git revisions."""
    folder = enter(pipeline)
    settings = settings_of(folder)
    from optlab.execution import versus
    from optlab.results import across
    from optlab.system.revision import Revision

    parsed = [Revision.parse(name) for name in revisions]
    versus.check_trained(settings, folder)
    print(across.report(settings, folder, parsed))


@command(REPRODUCE, "optlab release v1.0")
def release(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="The name of the git tag to make, such as v1.0.")],
    push: Annotated[bool, typer.Option("--push", help="Push the tag, and the outputs to the DVC remote.")] = False,
    mixed: Annotated[bool, typer.Option("--mixed", help="Accept runs from different environments.")] = False,
    pipeline: Pipeline = Path(),
) -> None:
    """Commit the finished comparison, and tag it."""
    folder = enter(pipeline)
    from optlab.execution import versus
    from optlab.reproduce import release as releasing

    compared = versus.compared(settings_of(folder), folder)
    commit = releasing.release(compared, folder, tag, mixed)
    print(f"{tag} is commit {commit[:12]}")
    print(releasing.mark(compared, folder, tag))
    for sentence in releasing.push(folder, tag) if push else []:
        print(sentence)


@command(REPRODUCE, "optlab reproduce v1.0 adam-0")
def reproduce(
    revision: Annotated[str, typer.Argument(metavar="REV", help="A tag, a branch or a commit.", autocompletion=tags)],
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Such as adam-0; default: all.", autocompletion=_recorded),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Use this machine's settings, not the recorded ones.")] = False,
    fresh_env: Annotated[bool, typer.Option("--fresh-env", help="Install the packages that REV pins first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
    tuning: Annotated[bool, typer.Option("--tuning", help="Repeat the hyperparameter search, too.")] = False,
    pipeline: Pipeline = Path(),
) -> None:
    """Train recorded runs again, and check that they are identical.

    Exit status: 0 identical, 3 within tolerance, 1 different, 2 could not be run.
    """
    try:
        status = _reproduce(pipeline, revision, runs or [], here, fresh_env, as_json, tuning)
    except (errors.OptlabError, OSError) as error:
        print(f"error: {errors.one_line(error)}", file=sys.stderr)
        status = 2
    raise typer.Exit(status)


def _reproduce(
    pipeline: Path, name: str, names: list[str], here: bool, fresh: bool, as_json: bool, tuning: bool
) -> int:
    folder = enter(pipeline)
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
            results.append(result)
            verdicts.log(revision, result, rerun.recorded_weights(revision, result.run))
    print(verdicts.as_json(revision, results) if as_json else verdicts.as_text(revision, results))
    return verdicts.exit_status(results)
