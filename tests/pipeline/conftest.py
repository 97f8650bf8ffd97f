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


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory):
    """A project after `dvc repro`, and what that printed. Tests that change it take a copy.

    It is computed once for all of pytest-xdist's workers; each has a copy, for DVC locks what it looks at.
    """
    own = tmp_path_factory.mktemp("reproduced")
    everybodys = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        everybodys = everybodys.parent
    original, printed = projects.Project(everybodys / "original"), everybodys / "printed"
    with FileLock(everybodys / "original.lock"):
        if not printed.exists():
            shutil.rmtree(original.top, ignore_errors=True)
            original.top.mkdir()
            projects.create(original.top)
            result = original.run("dvc", "repro")
            assert result.returncode == 0, result.stdout + result.stderr
            printed.write_text(result.stdout)
    return original.copy(own / "project"), printed.read_text()


@pytest.fixture
def copied(reproduced, tmp_path):
    """A copy of the reproduced project that a test may change."""
    return reproduced[0].copy(tmp_path / "copied")


@pytest.fixture(scope="session")
def longer(reproduced, tmp_path_factory):
    """A project that is to train longer, long enough for a checkpoint, in one thread. Tests take a copy.

    Adam rests before each step: the training takes its time on a fast machine, too, and leaves others the core.
    """
    project = reproduced[0].copy(tmp_path_factory.mktemp("longer") / "project")
    (project.top / "custom" / "resting.py").write_text(projects.RESTING)
    project.edit("params.yaml", "class: Adam,", "class: resting.Resting,")
    project.edit("params.yaml", "epochs: 2", f"epochs: {projects.LONG}")
    project.edit("params.yaml", "threads: 2", "threads: 1")
    return project


@pytest.fixture(scope="session")
def undisturbed(longer, tmp_path_factory):
    """The outputs of adam's longer training, by their paths."""
    project = longer.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    assert project.run_stage("train", "adam", "0").returncode == 0
    return {name: (project.top / name).read_bytes() for name in ("models/adam-0.safetensors", "runs/adam-0/train.json")}


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
