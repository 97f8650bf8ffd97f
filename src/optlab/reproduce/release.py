"""Releases: a finished comparison under a git tag, with all that is needed to compute it again."""

import json
import re
from pathlib import Path

from optlab import records
from optlab.analysis import environment_diff, tables
from optlab.analysis.comparison import Comparison, Run
from optlab.system import git, repository, source_code
from optlab.system.errors import RevisionError
from optlab.tracking import mlflow_store
from optlab.tracking.event_log import get_experiment_name

# The only paths that a release commits: the outputs of the stages that are in git, and params.yaml.
_RELEASED_FILES = ("params.yaml", "dvc.lock")
_RELEASED_FOLDERS = (records.RUNS_FOLDER, records.REPORTS_FOLDER, records.TUNING_FOLDER)


def release(compared: Comparison, folder: Path, tag: str, mixed: bool = False) -> str:
    """Commit params.yaml, dvc.lock and the record, and make the annotated tag; returns the commit's hash.

    Args:
        folder: of the pipeline.
        mixed: accept runs from different environments; the tag's message names them.

    Raises:
        RevisionError: the tag exists or is no valid name, stages are out of date, other files are changed, git does not
            track a module that the runs use or lacks a user name, or the runs come from different environments.
    """
    git.check_repository()
    _check_tag_name(tag)
    if git.get_output("rev-parse", "--verify", "--quiet", f"refs/tags/{tag}"):
        raise RevisionError(f"{tag}: the tag exists: choose another name, or delete it with `git tag -d {tag}`")
    files = [(folder / each).as_posix() for each in _RELEASED_FILES]
    folders = [f"{(folder / each).as_posix()}/" for each in _RELEASED_FOLDERS]
    others = [path for path in list_changed_files() if path not in files and not path.startswith(tuple(folders))]
    if others:
        raise RevisionError(f"{others[0]} is changed: commit it or undo it first ({len(others)} such files)")
    user_modules = source_code.find_user_modules(compared.config.list_class_paths())
    for path in git.find_untracked(each.as_posix() for each in user_modules):  # those not ignored are in `others`
        raise RevisionError(f"{path}: git ignores it, and the runs use it: `git add --force {path}`, and commit it")
    stale = list_stale_stages(folder)
    if stale:
        raise RevisionError(
            f"{stale[0]} is out of date: run `{_make_dvc_command(folder)} repro` first ({len(stale)} such stages)"
        )
    _check_environments(_select_own_runs(compared, folder), folder)
    differences = compared.differing_conditions
    notes = [environment_diff.describe_differences(differences)] if differences else compared.notes
    if notes and not mixed:
        raise RevisionError(f"{' '.join(notes)} Or release them as they are, with `--mixed`")
    _commit([path for path in (*files, *folders) if Path(path).exists()], f"Record of {tag}")
    message = f"{tag}\n{tables.render_text(compared)}\n"
    git.run("tag", "--annotate", tag, "--cleanup=verbatim", "--file", "-", stdin=message)
    return git.get_output("rev-parse", "HEAD") or ""


def _check_tag_name(tag: str) -> None:
    """Refuse a name that git takes for no tag, or that MLflow takes for no part of one."""
    is_valid_ref = git.get_output("check-ref-format", f"refs/tags/{tag}") is not None
    if not is_valid_ref or tag == "HEAD" or tag.startswith("-"):
        raise RevisionError(f"{tag}: not a valid name for a git tag: give one such as v1.0")
    if not re.fullmatch(r"[\w./-]{1,200}", tag):
        raise RevisionError(f"{tag}: MLflow takes no such name: at most 200 letters, digits, dots, slashes, - and _")


def _commit(paths: list[str], message: str) -> None:
    """Commit the changes of these paths; if git refuses, none of them stays staged.

    Raises:
        RevisionError: git lacks a user name, or refuses for another reason, such as a hook.
    """
    for who in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
        if git.get_output("var", who) is None:
            raise RevisionError("git does not know who commits: `git config user.name NAME`, and user.email, tell it")
    git.run("add", "--", *paths)
    if git.get_output("diff", "--cached", "--name-only"):
        try:
            git.run("commit", "--quiet", "-m", message, "--", *paths)
        except RevisionError:
            git.get_output("reset", "--quiet", "--", *paths)
            raise


def _select_own_runs(compared: Comparison, folder: Path) -> list[Run]:
    """Return the runs of the pipeline itself; others are in the record of a study."""
    return [run for run in compared.runs if run.files.folder == folder]


def _make_dvc_command(folder: Path) -> str:
    return "dvc" if folder == Path() else f"dvc --cd {folder.as_posix()}"


def _check_environments(runs: list[Run], folder: Path) -> None:
    """Refuse a conditions.json of another training: DVC can restore an earlier run's outputs, but not that file."""
    for run in runs:
        if run.conditions is None:
            raise RevisionError(
                f"{run.files.environment}: missing, or of another training than these weights: "
                f"run `{_make_dvc_command(folder)} repro -f -s train@{run.files.id}`"
            )


def list_changed_files() -> list[str]:
    """List the files that differ from the last commit, new ones included.

    Raises:
        RevisionError: git cannot tell.
    """
    listed = git.get_output("status", "--porcelain", "--untracked-files=all", "-z")
    if listed is None:
        raise RevisionError("`git status` failed: is this a git repository?")
    # The first two characters are the state; of a renamed file, the old name follows as an entry of its own.
    return [entry[3:] if entry[2:3] == " " else entry for entry in listed.split("\0") if entry]


def list_stale_stages(folder: Path) -> list[str]:
    """List the stages of the pipeline in a folder that `dvc repro` would run.

    Raises:
        RevisionError: DVC cannot tell.
    """
    result = repository.run_dvc(folder, "status", "--json", "dvc.yaml")
    if result.returncode:
        raise RevisionError(f"dvc status failed: {repository.extract_dvc_error(result)}")
    return list(json.loads(result.stdout or "{}"))


def tag_mlflow_runs(compared: Comparison, folder: Path, tag: str) -> str:
    """Tag the MLflow runs of the comparison, so that they can be filtered; returns a summary."""
    try:
        client = mlflow_store.connect()
        identity = mlflow_store.get_or_create_experiment(client, get_experiment_name(folder))
        wanted = [(run.files.id, run.trained.weights_sha256) for run in _select_own_runs(compared, folder)]
        runs = [run for run in mlflow_store.find_runs(client, identity, wanted) if run is not None]
        for run in runs:  # one tag per release: a run can belong to several
            client.set_tag(run.info.run_id, f"release.{tag}", "yes")
    except Exception as error:
        return f"MLflow was not reached, so its runs are not marked: {mlflow_store.describe_error(error)}"
    return f"{len(runs)} of {len(wanted)} runs marked in MLflow: filter with  tags.`release.{tag}` = 'yes'"


def push(folder: Path, tag: str) -> list[str]:
    """Push the tag, and the outputs if there is a DVC remote; returns summaries of both.

    Raises:
        RevisionError: git or DVC refused.
    """
    remotes = (git.get_output("remote") or "").splitlines()
    if not remotes:
        raise RevisionError("there is no git remote to push to: `git remote add origin URL` first")
    remote = "origin" if "origin" in remotes else remotes[0]
    git.run("push", "--quiet", remote, f"refs/tags/{tag}")
    sentences = [f"pushed {tag} to {remote}"]
    if not repository.has_dvc_remote(folder):
        command = f"{_make_dvc_command(folder)} remote add --default NAME URL"
        return [*sentences, f"no DVC remote is configured (`{command}`): the outputs stay in this machine's cache"]
    result = repository.run_dvc(folder, "push", "--with-deps", "dvc.yaml")
    if result.returncode:
        raise RevisionError(f"dvc push failed: {repository.extract_dvc_error(result)}")
    missing = repository.run_dvc(folder, "status", "--cloud", "--with-deps", "--json", "dvc.yaml")
    if missing.returncode or json.loads(missing.stdout or "{}"):
        command = f"{_make_dvc_command(folder)} status --cloud"
        raise RevisionError(f"the DVC remote has not got every output: run `{command}` to see which it lacks")
    return [*sentences, "pushed the outputs to the DVC remote"]
