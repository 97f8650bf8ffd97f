"""The commands that the pages show exist, with these options, and print what the pages show."""

import re
import subprocess
from pathlib import Path

import pytest
import typer.main
from ruamel.yaml import YAML

from optlab.analysis import revision_diff
from optlab.cli import app
from optlab.config import loader
from optlab.records import EvalRecord, RunFiles, TrainRecord
from optlab.system.git import Revision

TOP = Path(__file__).resolve().parents[1]
PAGES = [
    path.relative_to(TOP).as_posix()
    for pattern in ("*.md", "docs/*.md", "studies/*.md", "custom/*.md")
    for path in sorted(TOP.glob(pattern))
]
BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"^```console\n(.*?)^```", (TOP / page).read_text(), re.MULTILINE | re.DOTALL)
]
LINES = [
    (name, re.sub(r"\$\(.*?\)", "REV", line.removeprefix("$ ").partition("  #")[0].strip()))
    for name, block in BLOCKS
    for line in block.splitlines()
    if line.startswith("$ ")
]
REPRODUCED = [
    (name, *re.match(r"\$ optlab reproduce (\S+) (\S+)", part).groups(), part)
    for name, block in BLOCKS
    for part in re.split(r"^(?=\$ )", block, flags=re.MULTILINE)
    if re.match(r"\$ optlab reproduce (\S+) (\S+)\n.", part)
]


def find_commit(name):
    """Return the hash of a commit; skip the test in a clone without history, which cannot have it."""
    result = subprocess.run(
        ["git", "rev-parse", "--verify", f"{name}^{{commit}}"], cwd=TOP, capture_output=True, text=True
    )
    if result.returncode:
        shallow = subprocess.run(
            ["git", "rev-parse", "--is-shallow-repository"], cwd=TOP, capture_output=True, text=True
        )
        assert shallow.stdout.strip() == "true", f"{name} is no commit of this repository"
        pytest.skip(f"a shallow clone, without {name}: git fetch --unshallow")
    return result.stdout.strip()


def read_at(revision, path, folder):
    """Write a file as it was at a revision into a folder, where the records' readers expect it; returns its text."""
    text = subprocess.run(
        ["git", "show", f"{revision}:{path}"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)
    return text


def test_pages_have_console_blocks():
    assert len({name for name, _ in LINES}) >= 8 and len(LINES) > 40
    assert [(name, revision) for name, revision, *_ in REPRODUCED] == [
        ("README.md", "db465edf36b6"),
        ("docs/reproducing.md", "db465edf36b6"),
        ("docs/reproducing.md", "v1.0"),
    ]


@pytest.mark.parametrize(("page", "line"), [each for each in LINES if re.match("optlab [a-z]", each[1])])
def test_shown_command_and_options_exist(page, line):
    name, *words = line.split()[1:]
    command = typer.main.get_command(app).commands[name]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES)
def test_shown_make_targets_exist(page):
    named = re.findall(r"`make\s([a-z]+)", (TOP / page).read_text())
    named += [line.split()[1] for name, line in LINES if name == page and line.startswith("make ")]
    targets = re.findall(r"^([a-z]+):", (TOP / "Makefile").read_text(), re.MULTILINE)
    assert set(named) <= set(targets)


@pytest.mark.parametrize(("page", "revision", "run", "shown"), REPRODUCED)
def test_shown_reproduction_has_recorded_numbers(page, revision, run, shown, tmp_path):
    """The example v1.0 stands for the present record."""
    commit = "HEAD" if revision == "v1.0" else find_commit(revision)
    for name in ("train.json", "test.json"):
        read_at(commit, f"runs/{run}/{name}", tmp_path)
    optimizer, _, seed = run.rpartition("-")
    files = RunFiles(tmp_path, optimizer, int(seed))
    training, test = TrainRecord.read(files.training), EvalRecord.read(files.test)
    lines = [
        f"{run}  epoch {epoch.epoch}/{training.epochs}  training loss {epoch.train_loss:.4f}, "
        f"validation loss {epoch.validation_loss:.4f}, validation accuracy {epoch.validation_accuracy:.2%}"
        for epoch in training.history
    ]
    assert shown.splitlines()[1:][: len(lines) + 1] == [
        *lines,
        f"{run}  test loss {test.test_loss:.4f}, test accuracy {test.test_accuracy:.2%}",
    ]


def test_shown_difference_names_recorded_digests():
    text = (TOP / "docs" / "reproducing.md").read_text()
    commit = find_commit("e6a9d59")
    assert f"e6a9d59 ({commit[:12]})" in text
    lock = subprocess.run(
        ["git", "show", f"{commit}:dvc.lock"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout
    recorded = {
        out["path"]: out["md5"] for stage in YAML(typ="safe").load(lock)["stages"].values() for out in stage["outs"]
    }
    shown = re.findall(r"^  (\S+)  recorded ([0-9a-f]{32}), now [0-9a-f]{32}$", text, re.MULTILINE)
    assert len(shown) == 4
    assert {path: recorded[path] for path, _ in shown} == dict(shown)


def test_workflow_reproduces_run_that_readme_shows():
    assert "optlab reproduce db465edf36b6 adam-0" in (TOP / ".github" / "workflows" / "ci.yml").read_text()


def test_shown_comparison_with_earlier_commit_is_printed(monkeypatch):
    monkeypatch.chdir(TOP)
    block = next(block for _, block in BLOCKS if block.startswith("$ optlab compare bb24169"))
    find_commit("bb24169")
    report = revision_diff.build_report(loader.load(Path("params.yaml")), Path(), [Revision.parse("bb24169")])
    assert block.partition("\n")[2].strip() in report
