"""The commands of docs/tutorial.md, in their order, as its reader types them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import projects
import pytest

from optlab.data import download
from optlab.orchestration import sample

TOP = Path(__file__).resolve().parents[2]
# Shorter trainings than the reader's; all else is the same.
SHORT = """\
#!/bin/sh
exec {python} -c 'from optlab import cli
from optlab.orchestration import sample
sample._TRAINING["epochs"] = 1
cli.main()' "$@"
"""


def read_blocks(page):
    """The commands of each console block."""
    found = re.findall(r"^```console\n(.*?)^```", (TOP / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    return [re.findall(r"^\$ (.+)$", block, re.MULTILINE) for block in found]


def test_both_languages_have_same_commands():
    assert read_blocks("tutorial.md") == read_blocks("tutorial.zh.md")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The project in which all blocks were run by one shell, and what it has printed."""
    project = projects.create(tmp_path_factory.mktemp("tutorial"))
    archive = project.top / sample.ARCHIVE
    archive.parent.mkdir(parents=True)
    shutil.copy(projects.SAMPLE, archive)
    projects.commit(project, "the sample")
    program = project.top.parent / "bin" / "optlab"
    program.parent.mkdir()
    program.write_text(SHORT.format(python=sys.executable))
    program.chmod(0o755)
    environment = {name: value for name, value in project.environment.items() if name != download.ARCHIVE_ENV_VAR}
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    script = "\n".join(command for block in read_blocks("tutorial.md") for command in block)
    result = subprocess.run(
        ["bash", "-e", "-x"], input=script, cwd=project.top, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return project, result.stdout


def test_tutorial_ends_with_proof(played):
    _, printed = played
    assert re.search(r"^nadam-0 +identical +4/4 outputs", printed, re.MULTILINE)


def test_tutorial_adds_runs_and_leaves_clone_unchanged(played):
    project, printed = played
    checkout = project.top / sample.FOLDER
    runs = {path.name for path in (checkout / "runs").iterdir()}
    assert {"sgd-0", "adam-2", "nadam-0", "nadam-1", "nadam-2"} <= runs
    assert (checkout / "reports" / "report.html").is_file()
    assert project.run("git", "status", "--porcelain").stdout == ""
    assert "added nadam" in printed
