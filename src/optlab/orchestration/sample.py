"""`optlab sample`: runs the whole pipeline on 600 images in a checkout of its own, so that nothing else changes."""

import io
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

from ruamel.yaml import YAML

from optlab.config import loader
from optlab.data import download
from optlab.schema.parameters import PARAMS_FILE
from optlab.system import files, git, locks, processes
from optlab.system.errors import RunsFailedError

FOLDER = Path(".optlab") / "sample"
_MARKER = FOLDER.with_name("sample.json")  # commit and params.yaml of the checkout, as `run` left them
_OUTPUTS = ("dvc.lock", "runs", "tuning", "reports")  # tracked by git, and written by the pipeline
ARCHIVE = Path("tests") / "data" / "cifar10-sample.tar.gz"
_SEEDS = [0, 1, 2]
_DATA = {"dataset": "cifar10_sample", "train_size": 400, "validation_size": 100}
_TRAINING = {"epochs": 10, "batch_size": 16, "threads": 1}


def run() -> Path:
    """Run the last commit's comparison on the sample, with fewer seeds and more epochs.

    The checkout of an earlier call is removed if nothing but this function has changed it; otherwise it is moved to
    another name. MLflow's store is that of the checkout, whatever MLFLOW_TRACKING_URI says.

    Returns:
        The checkout's folder, relative to the top of the repository, which is the working directory.

    Raises:
        ConfigError: params.yaml cannot be used.
        RevisionError: git cannot check the last commit out.
        RunsFailedError: the pipeline failed.
        BusyError: another process runs the sample.
    """
    with locks.hold_lock("sample"), processes.interrupt_on_sigterm():
        return _run()


def _run() -> Path:
    git.check_repository()
    _clear()
    git.add_worktree(FOLDER, "HEAD")
    path = FOLDER / PARAMS_FILE
    loader.load(path)  # an error is one line
    params = _shorten(path.read_text("utf-8"))
    files.write_atomic(path, params.encode())
    files.write_atomic(_MARKER, json.dumps([_ask_git("rev-parse", "HEAD"), params]).encode())
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {download.ARCHIVE_ENV_VAR: str(ARCHIVE.absolute()), "PYTHONPATH": str((FOLDER / "src").absolute())}
    if processes.run([sys.executable, "-m", "optlab", "repro"], cwd=FOLDER, env=environment):
        raise RunsFailedError("the sample's pipeline failed: see above")
    return FOLDER


def _shorten(params: str) -> str:
    """Return the text of a params.yaml for the sample; a shorter training has shorter schedules."""
    yaml, output = YAML(), io.StringIO()
    content = yaml.load(params)
    content["seeds"], content["data"] = _SEEDS, _DATA
    training = content.setdefault("training", {})
    ratio = _TRAINING["epochs"] / training.get("epochs", 1)
    training.update(_TRAINING)
    if ratio < 1:
        owners = (training, *content["optimizers"].values())
        schedules = {id(each["schedule"]): each["schedule"] for each in owners if each.get("schedule")}  # aliases once
        for schedule in schedules.values():
            if "warmup_epochs" in schedule:
                schedule["warmup_epochs"] *= ratio
            if "step_epochs" in schedule:
                schedule["step_epochs"] = max(1, round(schedule["step_epochs"] * ratio))
    yaml.dump(content, output)
    return output.getvalue()


def _clear() -> None:
    """Remove the checkout of an earlier call, or move it to another name if it may hold a user's work."""
    if FOLDER.exists() and not _is_unchanged():
        names = (FOLDER.with_name(f"{FOLDER.name}-{number}") for number in itertools.count(1))
        other = next(name for name in names if not name.exists())
        git.get_output("worktree", "repair", str(FOLDER))  # of a clone that was moved
        if git.get_output("worktree", "move", str(FOLDER), str(other)) is None:
            FOLDER.rename(other)
            git.get_output("worktree", "repair", str(other))
        print(f"{FOLDER}: has changes, and was moved to {other}", flush=True)
    _MARKER.unlink(missing_ok=True)
    git.get_output("worktree", "remove", "--force", "--force", str(FOLDER))
    shutil.rmtree(FOLDER, ignore_errors=True)
    git.run("worktree", "prune")


def _is_unchanged() -> bool:
    """Return whether the checkout has nothing but its commit and what the pipeline writes."""
    try:
        commit, params = json.loads(_MARKER.read_bytes())
        is_params_ours = (FOLDER / PARAMS_FILE).read_bytes() == params.encode()
    except (OSError, ValueError):
        return False
    others = [f":!{name}" for name in (PARAMS_FILE, *_OUTPUTS)]
    status = _ask_git("status", "--porcelain", "--untracked-files=all", "--", ".", *others)
    return is_params_ours and commit is not None and _ask_git("rev-parse", "HEAD") == commit and status == ""


def _ask_git(*words: str) -> str | None:
    """Return what git says of the checkout; None if git fails, or the folder is not a work tree."""
    return git.get_output("-C", str(FOLDER), *words) if (FOLDER / ".git").is_file() else None
