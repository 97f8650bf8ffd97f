"""The small sample of CIFAR-10 and a configuration that trains on it in a second."""

import compileall
import os
import resource
import shutil
import sys
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported; several tests share the cores

import projects
import pytest

from optlab.data import download
from optlab.schema.parameters import Config
from optlab.tracking import mlflow_store

ARCHIVE = Path(__file__).parent / "data" / "cifar10-sample.tar.gz"


def pytest_configure():
    """Before pytest-xdist starts its workers, which find the socket in their environment."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process compiles what it imports
    if projects.STAGES_VARIABLE not in os.environ:
        compileall.compile_dir(projects.TOP / "src" / "optlab", quiet=1)
        projects.serve_stages()


def pytest_collection_modifyitems(items):
    """First a long file that needs no project, so that nobody waits while one worker makes the project for all."""
    items.sort(key=lambda item: item.path.name != "test_determinism.py")


@pytest.fixture(autouse=True, scope="module")
def _the_process_as_it_was():
    """What a file's tests have set for their process is not for those of other files, which come in any order.

    A training sets the number of threads, repeatable algorithms, a limit of memory, and where modules are looked for.
    """
    import torch

    environment, path, limit = dict(os.environ), list(sys.path), resource.getrlimit(resource.RLIMIT_DATA)
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    resource.setrlimit(resource.RLIMIT_DATA, limit)
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)
    from optlab.data import cifar10
    from optlab.system import repository
    from optlab.training import portable_kernels

    assert (cifar10._forbidden_reason, repository._current_pipeline, portable_kernels._library) == ("", Path(), None)


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A folder with the six files of cifar10_sample, put there by the library itself."""
    folder = tmp_path_factory.mktemp("project") / "data" / "cifar10_sample"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(download.ARCHIVE_ENV_VAR, str(ARCHIVE))
        download.ensure_dataset(folder, "cifar10_sample")
    return folder


@pytest.fixture(scope="session")
def small_config():
    """A function that returns the small configuration, changed.

    `data` and `training` take the keys to change; `model`, `seeds` and `optimizers` are replaced whole.
    """
    return _small_config


def _small_config(data=None, training=None, **changes):
    values = {
        "model": "zilliax",
        "seeds": [0],
        "data": {"dataset": "cifar10_sample", "train_size": 100, "validation_size": 20} | (data or {}),
        "training": {"epochs": 1, "batch_size": 16, "threads": 2} | (training or {}),
        "optimizers": {"sgd": {"class": "SGD", "lr": 0.01}, "adam": {"class": "Adam", "lr": 0.001}},
    }
    return Config.model_validate(values | changes)


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A repository with an empty MLflow database; creating one takes seconds."""
    top = tmp_path_factory.mktemp("store")
    (top / ".dvc").mkdir()
    (top / ".dvc" / "config").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        patch.setenv("MLFLOW_TRACKING_URI", "")  # to be put back: MLflow sets it
        del os.environ["MLFLOW_TRACKING_URI"]
        mlflow_store.connect()
    return top


@pytest.fixture
def top(database, tmp_path, monkeypatch):
    """A copy of it, as the working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(database, tmp_path / "top")
    monkeypatch.chdir(tmp_path / "top")
    return tmp_path / "top"
