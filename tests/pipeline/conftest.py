import sys
from pathlib import Path

import pytest

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
    """A project after `dvc repro`, and what that printed. Tests that change it take a copy."""
    project = projects.create(tmp_path_factory.mktemp("reproduced"))
    result = project.run("dvc", "repro")
    assert result.returncode == 0, result.stdout + result.stderr
    return project, result.stdout


@pytest.fixture
def copied(reproduced, tmp_path):
    """A copy of the reproduced project that a test may change."""
    return reproduced[0].copy(tmp_path / "copied")
