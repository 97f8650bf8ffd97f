"""`optlab repro` with nothing to do: quick, because nothing is started, and only while really nothing has changed."""

import shutil
import time
from pathlib import Path

import projects
import pytest

from optlab.config import loader
from optlab.orchestration import versus
from optlab.orchestration.dvc_pipeline import DvcPipeline
from optlab.orchestration.verified_state import VerifiedState

SLOW = {"torch", "mlflow", "dvc.repo"}  # of the fork server, the uploader daemon, and this process
STARTED = SLOW - {"mlflow"}  # at least, where MLflow lacks nothing: the command does not wait for the daemon's imports


def imported(result):
    """What a command and all Python processes that it started have imported, of the modules that take long."""
    names = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "import time:" in line}
    return names & SLOW


def test_unchanged_repro_starts_nothing_until_mlflow_lacks_something(copied):
    def repro():
        result = copied.run("optlab", "repro", PYTHONPROFILEIMPORTTIME="1")
        assert result.returncode == 0, result.stderr[-2000:]
        deadline = time.monotonic() + 240
        while projects.processes_below(copied.top):  # the next command would use this one's daemon
            assert time.monotonic() < deadline
            time.sleep(0.02)
        _, unchanged, shown = result.stdout.partition("Nothing has changed since the last comparison.\n")
        assert unchanged
        return imported(result), shown.splitlines()

    (modules, first), (no_modules, second) = repro(), repro()
    assert modules >= STARTED and no_modules == set()
    assert second[:-1] == first[:-1]  # the verdict, its table and the report
    (copied.top / "mlflow.db").unlink()
    modules, third = repro()
    assert modules == SLOW and third[-1].startswith("MLflow has all runs")
    assert (copied.top / "mlflow.db").exists()


def remove_cached_weights(top):
    """As `dvc gc` does it; the weights themselves are there."""
    weights = (top / "models" / "adam-0.safetensors").read_bytes()
    (copy,) = [each for each in top.glob(".dvc/cache/files/md5/*/*") if each.read_bytes() == weights]
    copy.unlink()


def rewrite(name):
    """The same content in another file, which may be another content for all that is known without reading it."""
    return lambda top: shutil.copy(top / name, top / "copy").replace(top / name)


CHANGES = {
    "weights": rewrite("models/adam-0.safetensors"),
    "record": rewrite("runs/adam-0/train.json"),
    "data": rewrite("data/cifar10/test_batch.bin"),
    "report": lambda top: (top / "reports/report.html").unlink(),
    "stage": lambda top: (top / "pipeline/compare.py").write_text("# another one\n"),
    "custom module": lambda top: (top / "custom/mine.py").write_text("# another one\n"),
    "dvc.lock": rewrite("dvc.lock"),
    "DVC's settings": lambda top: (top / ".dvc/config.local").write_text("[cache]\n    dir = elsewhere\n"),
    "cached weights": remove_cached_weights,
    "comparison in MLflow": lambda top: (top / ".optlab/comparisons/optlab.json").write_text("{}"),
}


@pytest.fixture
def verified(copied, monkeypatch):
    """The state of a complete pipeline in the working directory, saved."""
    monkeypatch.chdir(copied.top)
    state = VerifiedState(loader.load(), Path())
    assert not state.is_current()
    paths = DvcPipeline(Path("dvc.yaml"), []).list_watched_paths()
    state.write(paths, "of something else")
    assert not state.is_current()
    state.write(paths, state.compute_digest(paths))
    assert state.is_current()
    return state


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_of_what_dvc_looks_at_is_noticed(verified, change):
    change(Path.cwd())
    assert not verified.is_current()


def test_other_parameters_or_options_are_another_state(verified, monkeypatch):
    assert not VerifiedState(verified.config, Path(), allow_missing=True).is_current()
    other = verified.config.model_copy(update={"seeds": [5]})
    assert not VerifiedState(other, Path()).is_current()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert not verified.is_current()


def test_bytecode_is_no_change(verified):
    folder = Path("src/optlab/training/__pycache__")
    folder.mkdir(exist_ok=True)
    (folder / "another.pyc").write_bytes(b"")
    assert verified.is_current()


def test_unsent_log_and_server_are_not_in_mlflow(verified, monkeypatch):
    compared = versus.collect_comparison(verified.config, Path())
    assert verified.is_in_mlflow(compared)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # would have to be asked
    assert not verified.is_in_mlflow(compared)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    log = next(Path(".optlab/event_logs").glob("*/events.jsonl"))
    with log.open("a") as file:
        file.write("{}\n")
    assert not verified.is_in_mlflow(compared)
