"""A tracking server that is away, hangs, fails or dies: the training goes on, and nothing is lost."""

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import projects
from servers import Server, metrics_in, read_logged_metrics, runs_in, wait_until


@pytest.fixture
def server(tmp_path):
    """One that has not been started."""
    server = Server(tmp_path / "server")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A project with the data in place, one thread, and its outputs with nothing wrong."""
    top = tmp_path_factory.mktemp("ready") / "project"
    top.mkdir()
    project = projects.create(top)
    project.edit("params.yaml", "threads: 2", "threads: 1")
    assert project.run_stage("download").returncode == 0
    undisturbed = project.copy(top.with_name("undisturbed"))
    assert undisturbed.run_stage("train", "adam", "0").returncode == 0
    return project, (undisturbed.top / "runs/adam-0/train.json").read_bytes()


def warnings(result):
    return [line for line in result.stderr.splitlines() if "warning" in line]


def test_returning_server_gets_complete_data(ready, server, tmp_path):
    """Every metric with its original time; a second call changes nothing; the server was never needed."""
    project = ready[0].copy(tmp_path / "project")
    for stage in ("train", "evaluate"):
        result = project.run_stage(stage, "adam", "0", MLFLOW_TRACKING_URI=server.uri)
        assert result.returncode == 0
        assert len(warnings(result)) == 1, result.stderr
        assert "Traceback" not in result.stderr
    assert (project.top / "runs/adam-0/train.json").read_bytes() == ready[1]
    refused = project.run_forked("optlab", "sync", MLFLOW_TRACKING_URI=server.uri)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: MLflow at http://127.0.0.1")
    assert len(refused.stderr.splitlines()) == 1
    server.start()
    assert project.run_forked("optlab", "sync", MLFLOW_TRACKING_URI=server.uri).returncode == 0
    held = metrics_in(server.database)
    assert held == read_logged_metrics(project)
    assert runs_in(server.database) == ["FINISHED"]
    weights = (project.top / "models/adam-0.safetensors").read_bytes()
    (sent,) = (server.folder / "artifacts").rglob("weights/adam-0.safetensors")
    assert sent.read_bytes() == weights
    again = project.run_forked("optlab", "sync", MLFLOW_TRACKING_URI=server.uri)
    assert "no runs had something to send" in again.stdout
    assert metrics_in(server.database) == held
    # What was noted about how far it got is lost, as after a kill: all is sent once more, and nothing doubles.
    for path in (project.top / ".optlab" / "event_logs").glob("*/synced.json"):
        path.unlink()
    assert project.run_forked("optlab", "sync", MLFLOW_TRACKING_URI=server.uri).returncode == 0
    assert metrics_in(server.database) == held
    assert runs_in(server.database) == ["FINISHED"]


def test_emptied_server_gets_everything_again(ready, server, tmp_path):
    """`optlab sync` and the next stage see that another database is behind the same address."""
    project = ready[0].copy(tmp_path / "project")
    server.start()
    assert project.run_stage("train", "adam", "0", MLFLOW_TRACKING_URI=server.uri).returncode == 0
    assert "no runs had something" in project.run_forked("optlab", "sync", MLFLOW_TRACKING_URI=server.uri).stdout
    for command in (["optlab", "sync"], ["pipeline/evaluate.py", "adam", "0"]):
        server.empty()
        result = project.run_forked(*command, MLFLOW_TRACKING_URI=server.uri)
        assert result.returncode == 0 and not warnings(result), result.stderr
        assert metrics_in(server.database) == read_logged_metrics(project)
        assert runs_in(server.database) == ["FINISHED"]
    (sent,) = (server.folder / "artifacts").rglob("weights/adam-0.safetensors")
    assert sent.read_bytes() == (project.top / "models/adam-0.safetensors").read_bytes()


# Trains an epoch, of which the server is told then, and the next one when the test says so.
WAITING = """
import pathlib, time, torch

class Waiting(torch.optim.Adam):
    steps = 0

    def step(self, closure=None):
        Waiting.steps += len(self.param_groups[0]["params"]) > 2  # not those that it is tried with
        while Waiting.steps > 8 and not pathlib.Path("go").exists():
            time.sleep(0.05)
        return super().step(closure)
"""


def test_server_killed_during_training_is_filled_later(ready, server, tmp_path):
    """Killed while the training runs: the next stage of `dvc repro` sends what is missing by itself."""
    project = ready[0].copy(tmp_path / "project")
    (project.top / "custom" / "waiting.py").write_text(WAITING)
    project.edit("params.yaml", "class: Adam,", "class: waiting.Waiting,")
    server.start()
    command = [sys.executable, "pipeline/train.py", "adam", "0"]
    environment = project.environment | {"MLFLOW_TRACKING_URI": server.uri}
    training = subprocess.Popen(command, cwd=project.top, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_until(lambda: sum(metrics_in(server.database).values()) > 0 or training.poll() is not None, 240)
        assert training.poll() is None  # it is at work, and the server has a part of it
        server.kill()
    finally:
        (project.top / "go").touch()
    _, errors = training.communicate(timeout=300)
    assert training.returncode == 0, errors
    assert errors.count("warning:") == 1
    assert metrics_in(server.database) != read_logged_metrics(project)
    server.start()
    result = project.run_stage("evaluate", "adam", "0", MLFLOW_TRACKING_URI=server.uri)
    assert result.returncode == 0 and not warnings(result), result.stderr
    assert metrics_in(server.database) == read_logged_metrics(project)
    assert runs_in(server.database) == ["FINISHED"]


class Failing(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b"it is not my day")

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, *arguments):
        pass


@pytest.fixture(params=["answers 500", "hangs"])
def bad_server(request):
    """The address of a server that fails every request, or that takes connections and never answers."""
    if request.param == "answers 500":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_failing_server_costs_one_warning(ready, bad_server, tmp_path):
    project = ready[0].copy(tmp_path / "project")
    began = time.monotonic()
    result = project.run_stage("train", "adam", "0", MLFLOW_TRACKING_URI=bad_server)
    assert result.returncode == 0
    assert len(warnings(result)) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert (project.top / "runs/adam-0/train.json").read_bytes() == ready[1]
    assert time.monotonic() - began < 90  # a call to such a server takes MLflow's client four minutes by itself


def test_store_is_filled_from_revision(copied, tmp_path):
    """In a clone without MLflow's database: first without the weights, then where DVC's cache has them."""
    for command in (["add", "-A"], ["commit", "-qm", "record"]):
        assert copied.run("git", *command).returncode == 0
    bare, full = copied.clone(tmp_path / "bare"), copied.clone(tmp_path / "full", cached=True)
    for project, words in ((bare, "without its weights"), (full, "with its weights")):
        result = project.run_forked("optlab", "sync", "--from", "HEAD")
        assert result.returncode == 0, result.stderr
        assert f"adam-0: taken from HEAD, {words}" in result.stdout
        database = project.top / "mlflow.db"
        assert runs_in(database) == ["FINISHED", "FINISHED"]
        held = metrics_in(database)
        losses = sorted((step, value) for name, step, value, _ in held.elements() if name == "step/loss")
        expected = []
        for run in ("adam-0", "sgd-0"):
            record = json.loads((copied.top / "runs" / run / "train.json").read_text())
            expected += list(enumerate(loss for epoch in record["step_losses"] for loss in epoch))
        assert losses == sorted(expected)
        assert any(name == "test/accuracy" for name, *_ in held)
        committed = int(project.run("git", "show", "-s", "--format=%ct").stdout) * 1000
        assert {when for *_, when in held} == {committed}
        found = list((project.top / "mlruns").rglob("weights/adam-0.safetensors"))
        assert len(found) == (1 if project is full else 0)
        again = project.run_forked("optlab", "sync", "--from", "HEAD")
        assert "MLflow has it already" in again.stdout
        assert metrics_in(database) == held
        assert runs_in(database) == ["FINISHED", "FINISHED"]


def test_revision_without_record_is_rejected(copied):
    result = copied.run_forked("optlab", "sync", "--from", "HEAD")
    assert result.returncode == 1
    assert result.stderr == "error: HEAD: the record of sgd-0 is incomplete: `dvc repro` was not committed\n"
    assert copied.run_forked("optlab", "sync", "--from", "nonsense").stderr.startswith("error: nonsense: no such tag")
