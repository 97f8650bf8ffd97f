"""`optlab sample`: runs the whole pipeline on 600 images in a checkout of its own, so that nothing else changes."""

import io
import os
import shutil
import sys
from pathlib import Path

from ruamel.yaml import YAML

from optlab.data import download
from optlab.schema.parameters import PARAMS_FILE
from optlab.system import git, processes
from optlab.system.errors import ConfigError, RunsFailedError
from optlab.system.repository import CUSTOM

FOLDER = Path(".optlab") / "sample"
ARCHIVE = Path("tests") / "data" / "cifar10-sample.tar.gz"
_SEEDS = [0, 1, 2]
_DATA = {"dataset": "cifar10_sample", "train_size": 400, "validation_size": 100}
_TRAINING = {"epochs": 10, "batch_size": 16, "threads": 1}


def run() -> Path:
    """Run the last commit's comparison on the sample, with fewer seeds and more epochs.

    MLflow's store is that of the checkout, whatever MLFLOW_TRACKING_URI says.

    Returns:
        The checkout's folder, relative to the top of the repository, which is the working directory.

    Raises:
        ConfigError: the checkout of an earlier call has a user's changes.
        RevisionError: git cannot check the last commit out.
        RunsFailedError: the pipeline failed.
    """
    _check_unchanged()
    git.get_output("worktree", "remove", "--force", "--force", str(FOLDER))
    shutil.rmtree(FOLDER, ignore_errors=True)
    git.run("worktree", "prune")
    git.run("worktree", "add", "--quiet", "--detach", str(FOLDER), "HEAD")
    path = FOLDER / PARAMS_FILE
    path.write_text(_shorten(path.read_text("utf-8")), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {download.ARCHIVE_ENV_VAR: str(ARCHIVE.absolute()), "PYTHONPATH": str((FOLDER / "src").absolute())}
    if processes.run([sys.executable, "-m", "optlab", "repro"], cwd=FOLDER, env=environment):
        raise RunsFailedError("the sample's pipeline failed: see above")
    return FOLDER


def _shorten(params: str) -> str:
    """Return the text of a params.yaml for the sample."""
    yaml, output = YAML(), io.StringIO()
    content = yaml.load(params)
    content["seeds"], content["data"] = _SEEDS, _DATA
    content["training"].update(_TRAINING)
    yaml.dump(content, output)
    return output.getvalue()


def _check_unchanged() -> None:
    """Check that the checkout of an earlier call can be removed without loss.

    Raises:
        ConfigError: params.yaml or custom/ was changed there, or a commit is on no branch.
    """
    commit, original = (_ask_git(*words) for words in (("rev-parse", "HEAD"), ("show", f"HEAD:{PARAMS_FILE}")))
    path = FOLDER / PARAMS_FILE
    if not (FOLDER / ".git").is_file() or commit is None or original is None or not path.is_file():
        return
    removal = f"`git worktree remove --force --force {FOLDER}` discards it"
    if not git.get_output("for-each-ref", "--count=1", "--contains", commit.strip()):
        name = commit[:8]
        raise ConfigError(f"{FOLDER}: its commit {name} is on no branch: `git branch NAME {name}` keeps it; {removal}")
    changed = _ask_git("status", "--porcelain", "--", str(CUSTOM)) or ""
    if path.read_text("utf-8").strip() not in (original.strip(), _shorten(original).strip()):
        changed = f"   {PARAMS_FILE}\n{changed}"
    if changed:
        first = changed.splitlines()[0][3:]
        raise ConfigError(f"{FOLDER / first}: was changed since `optlab sample`: commit it there or copy it; {removal}")


def _ask_git(*words: str) -> str | None:
    return git.get_output("-C", str(FOLDER), *words)
