"""`optlab sample`: runs the whole pipeline on 600 images in a checkout of its own, so that nothing else changes."""

import os
import shutil
import sys
from pathlib import Path

from ruamel.yaml import YAML

from optlab.data import download
from optlab.schema.parameters import PARAMS_FILE
from optlab.system import git, processes
from optlab.system.errors import RunsFailedError

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
        RevisionError: git cannot check the last commit out.
        RunsFailedError: the pipeline failed.
    """
    git.get_output("worktree", "remove", "--force", "--force", str(FOLDER))
    shutil.rmtree(FOLDER, ignore_errors=True)
    git.run("worktree", "prune")
    git.run("worktree", "add", "--quiet", "--detach", str(FOLDER), "HEAD")
    yaml = YAML()
    params = yaml.load((FOLDER / PARAMS_FILE).read_text(encoding="utf-8"))
    params["seeds"], params["data"] = _SEEDS, _DATA
    params["training"].update(_TRAINING)
    with (FOLDER / PARAMS_FILE).open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {download.ARCHIVE_ENV_VAR: str(ARCHIVE.absolute()), "PYTHONPATH": str((FOLDER / "src").absolute())}
    if processes.run([sys.executable, "-m", "optlab", "repro"], cwd=FOLDER, env=environment):
        raise RunsFailedError("the sample's pipeline failed: see above")
    return FOLDER
