"""A finished comparison under a git tag that holds all that is needed to compute it again."""

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

# What the stages write into git, and what decides them: the only paths that a release commits.
_RELEASED_FILES = ("params.yaml", "dvc.lock")
_RELEASED_FOLDERS = (records.RUNS_FOLDER, records.REPORTS_FOLDER, records.TUNING_FOLDER)


def release(compared: Comparison, folder: Path, tag: str, mixed: bool = False) -> str:
    """Commit params.yaml, dvc.lock and the record, and make the annotated tag; returns the commit's hash.

    Args:
        folder: of the pipeline.
        mixed: accept runs that were made under different conditions; the tag's message names them.

    Raises:
        RevisionError: the tag exists or is no valid name, stages are out of date, other files are changed, git has not
            got a module that the runs use or does not know who commits, or they were made under different conditions.
    """
    git.check_repository()
    _check_tag_name(tag)
    if git.get_output("rev-parse", "--verify", "--quiet", f"refs/tags/{tag}"):
        raise RevisionError(f"{tag}: the tag exists: choose another name, or delete it with `git tag -d {tag}`")
    own_files = [(folder / each).as_posix() for each in _RELEASED_FILES]
    own_folders = [f"{(folder / each).as_posix()}/" for each in _RELEASED_FOLDERS]
    foreign = [
        path for path in list_changed_files() if path not in own_files and not path.startswith(tuple(own_folders))
    ]
    if foreign:
        raise RevisionError(f"{foreign[0]} is changed: commit it or undo it first ({len(foreign)} such files)")
    user_modules = source_code.find_user_modules(compared.config.list_class_paths())
    for path in git.find_untracked(each.as_posix() for each in user_modules):  # those not ignored are in `foreign`
        raise RevisionError(f"{path}: git ignores it, and the runs use it: `git add --force {path}`, and commit it")
    pipeline = (folder / "dvc.yaml").as_posix()
    stale = list_stale_stages(pipeline)
    if stale:
        command = "dvc repro" if folder == Path() else f"dvc repro {pipeline}"
        raise RevisionError(f"{stale[0]} is out of date: run `{command}` first ({len(stale)} such stages)")
    _check_environments(_select_own_runs(compared, folder), "" if folder == Path() else f"{pipeline}:")
    other = (
        [environment_diff.describe_differences(compared.differing_conditions)]
        if compared.differing_conditions
        else list(compared.notes)
    )
    if other and not mixed:
        raise RevisionError(f"{' '.join(other)} Or release them as they are, with `--mixed`")
    own = [path for path in (*own_files, *own_folders) if Path(path).exists()]
    _commit(own, f"Record of {tag}")
    message = f"{tag}\n{tables.render_text(compared)}\n"
    git.run("tag", "--annotate", tag, "--cleanup=verbatim", "--file", "-", stdin=message)
    return git.get_output("rev-parse", "HEAD") or ""


def _check_tag_name(tag: str) -> None:
    """Refuse what is no name of a tag of git's, or of MLflow's, where it is a part of one."""
    is_valid_ref = git.get_output("check-ref-format", f"refs/tags/{tag}") is not None
    if not is_valid_ref or tag == "HEAD" or tag.startswith("-"):
        raise RevisionError(f"{tag}: not a valid name for a git tag: give one such as v1.0")
    if not re.fullmatch(r"[\w./-]{1,200}", tag):
        raise RevisionError(f"{tag}: MLflow takes no such name: at most 200 letters, digits, dots, slashes, - and _")


def _commit(paths: list[str], message: str) -> None:
    """Commit what has changed of these paths; if git refuses, none of it stays staged.

    Raises:
        RevisionError: git does not know who commits, or refuses for another reason, such as a hook.
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
    """Those of the runs that are the pipeline's own; others are in the record of a study."""
    return [run for run in compared.runs if run.files.folder == folder]


def _check_environments(own: list[Run], pipeline: str) -> None:
    """Refuse conditions of another training: DVC can bring back an earlier run's outputs, but not its conditions.

    Args:
        pipeline: what DVC wants before a stage's name.
    """
    for run in own:
        if run.conditions is None:
            raise RevisionError(
                f"{run.files.environment}: missing, or of another training than these weights: "
                f"run `dvc repro -f -s {pipeline}train@{run.files.id}`"
            )


def list_changed_files() -> list[str]:
    """Files that differ from the last commit, new ones included.

    Raises:
        RevisionError: git cannot tell.
    """
    listed = git.get_output("status", "--porcelain", "--untracked-files=all", "-z")
    if listed is None:
        raise RevisionError("`git status` failed: is this a git repository?")
    # The first two characters are the state; of a renamed file, the old name follows as an entry of its own.
    return [entry[3:] if entry[2:3] == " " else entry for entry in listed.split("\0") if entry]


def list_stale_stages(pipeline: str) -> list[str]:
    """The stages of a pipeline that `dvc repro` would run.

    Raises:
        RevisionError: DVC cannot tell.
    """
    result = repository.run_dvc("status", "--json", pipeline)
    if result.returncode:
        raise RevisionError(f"dvc status failed: {repository.extract_dvc_error(result)}")
    return list(json.loads(result.stdout or "{}"))


def tag_mlflow_runs(compared: Comparison, folder: Path, tag: str) -> str:
    """Tag the MLflow runs of the comparison, so that they can be filtered; returns a sentence about it."""

    try:
        client = mlflow_store.connect()
        identity = mlflow_store.get_or_create_experiment(client, get_experiment_name(folder))
        wanted = [(run.files.id, run.trained.weights_sha256) for run in _select_own_runs(compared, folder)]
        found = [run for run in mlflow_store.find_runs(client, identity, wanted) if run is not None]
        for run in found:
            # One tag per release: a run can belong to several.
            client.set_tag(run.info.run_id, f"release.{tag}", "yes")
    except Exception as error:
        return f"MLflow was not reached, so its runs are not marked: {mlflow_store.describe_error(error)}"
    return f"{len(found)} of {len(wanted)} runs marked in MLflow: filter with  tags.`release.{tag}` = 'yes'"


def push(folder: Path, tag: str) -> list[str]:
    """Push the tag, and the outputs if there is a DVC remote; returns sentences about both.

    Raises:
        RevisionError: git or DVC refused.
    """
    remotes = (git.get_output("remote") or "").splitlines()
    if not remotes:
        raise RevisionError("there is no git remote to push to: `git remote add origin URL` first")
    remote = "origin" if "origin" in remotes else remotes[0]
    git.run("push", "--quiet", remote, f"refs/tags/{tag}")
    sentences = [f"pushed {tag} to {remote}"]
    if not repository.has_dvc_remote(Path.cwd()):
        return [*sentences, "no DVC remote is configured: the outputs stay in this machine's cache"]
    pipelines = list(dict.fromkeys(["dvc.yaml", (folder / "dvc.yaml").as_posix()]))  # the data is the first one's
    result = repository.run_dvc("push", *pipelines)
    if result.returncode:
        raise RevisionError(f"dvc push failed: {repository.extract_dvc_error(result)}")
    missing = repository.run_dvc("status", "--cloud", "--json", *pipelines)
    if missing.returncode or json.loads(missing.stdout or "{}"):
        raise RevisionError("the DVC remote has not got every output: run `dvc status --cloud` to see which it lacks")
    return [*sentences, "pushed the outputs to the DVC remote"]
