"""What stays on the screen of a real terminal: no line of DVC's, few of progress, and the verdict at the end."""

import re
import shutil
import sys
from pathlib import Path

import projects
import pytest
import terminal
from projects import TOP
from ruamel.yaml import YAML

from optlab.data import download
from optlab.orchestration import sample
from optlab.system import locks
from optlab.system.errors import BusyError

STUDY = """\
model: zilliax
seeds: [10, 11]
data: {dataset: cifar10_sample, train_size: 100, validation_size: 20}
training: {epochs: 1, batch_size: 20, threads: 1}
tuning: {trials: 1, halving: 1}
optimizers:
  sgd: {class: SGD, lr: {log: [0.001, 1.0]}}
  adam: {class: Adam, lr: 0.001}
"""

# What is meant to stay above the verdict, by the kind of line.
START = r"\S*params\.yaml: \d+ optimizers? × \d+ seeds? = \d+ runs?, \d+ at a time"
EPOCH = r"\w+-\d+  epoch \d+/\d+  training loss .*"
TEST = r"\w+-\d+  test loss \d\.\d+, test accuracy \d+\.\d+%"
TUNING = r"[\w-]+: .*(trial|default).*"


# `optlab sample`, with fewer epochs: each seed is trained, and compared, as always.
SHORT_SAMPLE = """
from optlab import cli
from optlab.orchestration import sample
sample._TRAINING["epochs"] = 2
cli.main()
"""


def optlab(project, *words, folder=".", columns=120):
    return terminal.run_forked(["optlab", *words], project.top / folder, project.get_fork_environment(), columns)


def above_verdict(project, screen, folder="."):
    """The lines above the verdict, which is there whole, in the window that a user sees at the end."""
    text = (project.top / folder / "reports" / "comparison.md").read_text()
    verdict = text.split("\n\n")[0].strip("*")
    (start,) = (number for number, line in enumerate(screen.lines) if line.startswith(verdict[:20]))
    assert " ".join(" ".join(screen.lines[start:]).split()).startswith(verdict)
    assert screen.lines[start] in screen.window
    return screen.lines[:start]


def unexpected(lines):
    """The lines that are of no kind that is meant to stay."""
    return [line for line in lines if not any(re.fullmatch(kind, line) for kind in (START, EPOCH, TEST, TUNING))]


@pytest.fixture(scope="module")
def studied(reproduced, tmp_path_factory):
    """A finished comparison, committed, and a study beside it that has not been run."""
    project = reproduced[0].copy(tmp_path_factory.mktemp("terminal") / "project")
    study = project.top / "studies" / "small"
    study.mkdir(parents=True)
    (study / "params.yaml").write_text(STUDY)
    shutil.copy(TOP / "studies" / "optimizers" / "dvc.yaml", study)
    projects.commit(project, "a study")
    return project


def test_quiet_check_prints_nothing_and_check_one_line(studied):
    command = [str(Path(sys.executable).parent / "optlab"), "check"]
    screen = terminal.run([*command, "--quiet"], studied.top, studied.environment)
    assert (screen.status, screen.lines) == (0, [])
    screen = terminal.run(command, studied.top, studied.environment)
    assert screen.status == 0
    assert screen.lines[0] == "params.yaml: no errors; 2 runs: sgd, adam"
    assert len(screen.lines) == 1 or "bf16" in screen.lines[1]  # on some machines


def test_unchanged_repro_prints_verdict_again(studied):
    screen = optlab(studied, "repro")
    assert screen.status == 0, screen.lines
    above = above_verdict(studied, screen)
    assert above[1:] == ["Nothing has changed since the last comparison."]
    assert re.fullmatch(START, above[0])
    assert b"Collecting files" not in screen.raw and b"Waiting to acquire" not in screen.raw


def test_comparison_and_versus_leave_epochs_and_verdict(studied):
    first = optlab(studied, "repro", folder="studies/small")
    second = optlab(studied, "versus", "momentum", "--study", "studies/small", columns=100)
    for screen, folder, runs in ((first, "studies/small", 4), (second, "studies/small-momentum", 2)):
        assert screen.status == 0, screen.lines
        above = above_verdict(studied, screen, folder)
        assert len(unexpected(above)) <= 3, screen.lines
        assert sum(bool(re.match(r"\w+-\d+  epoch ", line)) for line in above) == runs
        assert b"Collecting files" not in screen.raw
    assert b"no verdict yet" in first.raw
    assert re.search(rb"sgd-1[01]: trials: +0%[^\r]*0/2 [^\r]*[12] in training", first.raw)
    assert not [line for line in first.lines if "no verdict yet" in line], first.lines


def test_warning_and_restored_runs_leave_display_intact(studied):
    if not (studied.top / "studies" / "small" / "runs").exists():  # where this test runs alone
        assert optlab(studied, "repro", folder="studies/small").status == 0
    other = studied.top / "studies" / "unsent"
    ignored = shutil.ignore_patterns("runs", "tuning", "dvc.lock")
    shutil.copytree(studied.top / "studies" / "small", other, symlinks=True, ignore=ignored)
    environment = studied.get_fork_environment() | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    screen = terminal.run_forked(["optlab", "repro"], other, environment, columns=100)
    assert screen.status == 0, screen.lines
    (start,) = (number for number, line in enumerate(screen.lines) if line.startswith("warning: MLflow at http"))
    assert "does not take the runs now" in " ".join(screen.lines[start : start + 2])
    restored = r"\w+-\d+  (train|evaluate): as an equal one that DVC has kept"
    assert sum(bool(re.fullmatch(restored, line)) for line in screen.lines) == 8
    assert b"no verdict yet" in screen.raw
    assert not [line for line in screen.lines if "no verdict yet" in line], screen.lines


def test_reproduction_leaves_short_output_with_verdict(studied):
    screen = optlab(studied, "reproduce", "HEAD", "adam-0")
    assert screen.status == 0, screen.lines
    assert len(screen.lines) < 20, screen.lines
    assert any("identical" in line for line in screen.window)
    assert b"Collecting files" not in screen.raw


def test_dataset_mismatch_is_reported_before_training(studied):
    other = studied.top / "studies" / "full"
    shutil.copytree(studied.top / "studies" / "small", other)
    studied.edit("studies/full/params.yaml", "dataset: cifar10_sample", "dataset: cifar10")
    result = studied.run_forked("optlab", "repro", folder="studies/full")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "error: data/cifar10/data_batch_1.bin: holds cifar10_sample, but this pipeline's params.yaml"
    )
    shutil.rmtree(other)


def test_second_sample_leaves_the_checkout_of_the_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = sample.FOLDER / "params.yaml"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with locks.hold_lock("sample"), pytest.raises(BusyError):
        sample.run()
    assert kept.exists()


def test_sample_shortens_schedules_with_the_training():
    """A warm-up of all ten epochs would be refused, and name a file that the user did not write."""
    text = """\
training: {epochs: 100, schedule: {name: step, warmup_epochs: 10, step_epochs: 4}}
optimizers:
  sgd: {class: SGD}
  nadam: {class: NAdam, schedule: null}
  adam: {class: Adam, schedule: {name: cosine, warmup_epochs: 20}}
"""
    found = YAML(typ="safe").load(sample._shorten(text))
    assert found["training"]["epochs"] == 10
    assert found["training"]["schedule"] == {"name": "step", "warmup_epochs": 1.0, "step_epochs": 1}
    assert found["optimizers"]["adam"]["schedule"]["warmup_epochs"] == 2.0
    short = YAML(typ="safe").load(sample._shorten(text.replace("100", "5")))
    assert short["training"]["schedule"]["warmup_epochs"] == 10


def test_sample_trains_in_checkout_without_side_effects(studied):
    archive = studied.top / sample.ARCHIVE
    archive.parent.mkdir(parents=True)
    shutil.copy(projects.SAMPLE, archive)
    projects.commit(studied, "the sample")
    own = {name: value for name, value in studied.environment.items() if name != download.ARCHIVE_ENV_VAR}
    screen = terminal.run([sys.executable, "-c", SHORT_SAMPLE, "sample"], studied.top, own)
    assert screen.status == 0, screen.lines
    assert ".optlab/sample/reports/report.html, and `optlab ui` there" in " ".join(screen.lines[-2:])
    above = above_verdict(studied, screen, ".optlab/sample")
    assert sum(bool(re.fullmatch(EPOCH, line)) for line in above) == 12  # two optimizers, three seeds
    assert len(unexpected(above)) <= 3, screen.lines
    assert studied.run("git", "status", "--porcelain").stdout == ""
    assert (studied.top / ".optlab" / "sample" / "mlflow.db").is_file()


SAMPLE_CHANGES = {
    "params.yaml": lambda checkout, git: append(checkout / "params.yaml"),
    "a module": lambda checkout, git: append(checkout / "custom" / "mine.py"),
    "code": lambda checkout, git: append(checkout / "src" / "mine.py"),
    "a commit": lambda checkout, git: [append(checkout / "NOTES"), git("add", "-A"), git("commit", "-qm", "mine")],
    "a damaged checkout": lambda checkout, git: (checkout / ".git").write_text("gitdir: /nowhere\n"),
    "a call that was killed": lambda checkout, git: (checkout.parent / "sample.json").unlink(),
}


def append(path):
    with path.open("a") as file:
        file.write("# mine\n")


@pytest.mark.parametrize("change", SAMPLE_CHANGES.values(), ids=SAMPLE_CHANGES)
def test_sample_keeps_changed_checkout(studied, monkeypatch, capsys, change):
    """It is moved; an unchanged one, with the pipeline's outputs, is replaced."""
    monkeypatch.chdir(studied.top)
    monkeypatch.setattr(sample.processes, "run", lambda *_, **__: append(sample.FOLDER / "dvc.lock"))
    sample.run()
    (sample.FOLDER / "runs" / "new").mkdir(parents=True)
    append(sample.FOLDER / "runs" / "new" / "train.json")
    sample.run()
    assert capsys.readouterr().out == "" and not (sample.FOLDER / "runs" / "new").exists()
    change(studied.top / sample.FOLDER, lambda *words: studied.run("git", "-C", str(sample.FOLDER), *words))
    before = {path: path.read_bytes() for path in sample.FOLDER.rglob("*") if path.is_file() and path.name != ".git"}
    sample.run()
    said = capsys.readouterr().out
    assert said == ".optlab/sample: has changes, and was moved to .optlab/sample-1\n"
    moved = sample.FOLDER.with_name("sample-1")
    assert {path: (moved / path.relative_to(sample.FOLDER)).read_bytes() for path in before} == before
    assert (sample.FOLDER / "params.yaml").is_file()
    assert studied.run("git", "-C", str(moved), "status").returncode == 0
    studied.run("git", "worktree", "remove", "--force", "--force", str(moved))
    shutil.rmtree(moved, ignore_errors=True)
