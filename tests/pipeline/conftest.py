import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import projects


@pytest.fixture
def fresh(tmp_path):
    """A project in which nothing has run."""
    top = tmp_path / "fresh"
    top.mkdir()
    return projects.create(top)


def make_once(tmp_path_factory, name, make):
    """A folder of that name that `make` has filled, once for all of pytest-xdist's workers."""
    everybodys = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        everybodys = everybodys.parent
    folder, done = everybodys / name, everybodys / f"{name}.done"
    with FileLock(everybodys / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory):
    """A project after `dvc repro`, whose stages were forked, and what that printed. Tests that change it take a copy.

    Each of pytest-xdist's workers has a copy, for DVC locks what it looks at.
    """

    def make(folder):
        (folder / "project").mkdir()
        result = projects.create(folder / "project").repro()
        assert result.returncode == 0, result.stdout + result.stderr
        (folder / "printed").write_text(result.stdout)

    made = make_once(tmp_path_factory, "original", make)
    own = tmp_path_factory.mktemp("reproduced") / "project"
    return projects.Project(made / "project").copy(own), (made / "printed").read_text()


@pytest.fixture
def copied(reproduced, tmp_path):
    """A copy of the reproduced project that a test may change."""
    return reproduced[0].copy(tmp_path / "copied")


@pytest.fixture(scope="session")
def longer(reproduced, tmp_path_factory):
    """A project that is to train longer, long enough for a checkpoint, in one thread. Tests take a copy.

    Adam rests before each step: the training takes its time on a fast machine, too, and leaves others the core. A step
    is of three images.
    """
    project = reproduced[0].copy(tmp_path_factory.mktemp("longer") / "project")
    (project.top / "custom" / "resting.py").write_text(projects.RESTING)
    project.edit("params.yaml", "class: Adam,", "class: resting.Resting,")
    project.edit("params.yaml", "epochs: 2, batch_size: 16", f"epochs: {projects.LONG}, batch_size: 3")
    project.edit("params.yaml", "train_size: 100", "train_size: 20")
    project.edit("params.yaml", "threads: 2", "threads: 1")
    return project


@pytest.fixture(scope="session")
def undisturbed(longer, tmp_path_factory):
    """The outputs of adam's longer training, by their paths."""

    def make(folder):
        project = longer.copy(folder / "project")
        result = project.run_stage("train", "adam", "0")
        assert result.returncode == 0, result.stderr

    top = make_once(tmp_path_factory, "undisturbed", make) / "project"
    return {name: (top / name).read_bytes() for name in ("models/adam-0.safetensors", "runs/adam-0/train.json")}


@pytest.fixture
def disk():
    """A function that puts a disk of its own, of that size, at a folder of a project; its files come along."""
    mounted = []

    def mount(folder, size):
        aside = folder.with_name(f"{folder.name}.aside")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        shutil.copytree(folder, aside, symlinks=True)
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if result.returncode:
            pytest.skip(f"mounting is not permitted here: {result.stderr.strip()}")
        mounted.append(folder)
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(aside)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def resize():
    """A function that gives a mounted disk another size."""

    def remount(folder, size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    return remount
