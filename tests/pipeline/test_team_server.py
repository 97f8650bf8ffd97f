"""A team's server as docs/team.md sets it up: PostgreSQL, proxied artifacts, and a login."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import projects
import psutil
import pytest
import requests
from test_mlflow import look, run_of

ADMIN = ("admin", "the-password-of-admin")
MEMBERS = {"ada": "the-password-of-ada", "ben": "the-password-of-ben"}

# The settings of docs/team.md: members may write into what another member began.
AUTH = """\
[mlflow]
admin_username = admin
default_permission = EDIT
auth_cache_ttl_seconds = 60
database_uri = {database}
"""


def _postgresql():
    """The folder of PostgreSQL's programs, which Debian does not put into PATH; None where there is none."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = shutil.which("initdb") or (installed[-1] if installed else None)
    return Path(found).resolve().parent if found else None


pytestmark = pytest.mark.skipif(
    _postgresql() is None, reason="there is no PostgreSQL here, neither in PATH nor in /usr/lib/postgresql"
)


@contextmanager
def postgres():
    """A cluster of its own, for the length of the test; its socket is in a folder that is closed to other users."""
    # It refuses to run as root, and pytest's own folders are closed to other users.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="optlab-postgres-"))
    try:
        if user:
            shutil.chown(folder, "postgres")

        def run(program, *arguments):
            with (folder / "log").open("a") as log:
                command = [*user, _postgresql() / program, *arguments]
                status = subprocess.run(command, cwd=folder, stdout=log, stderr=log, timeout=240).returncode
            assert status == 0, (folder / "log").read_text()

        run("initdb", "-D", folder / "data", "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        try:
            run("pg_ctl", "start", "-w", "-D", folder / "data", "-o", options)
            for database in ("mlflow", "mlflow_auth"):
                run("createdb", "-h", folder, "-U", "mlflow", database)
            yield f"postgresql://mlflow@/{{}}?host={folder}"
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", folder / "data")
        assert not projects.processes_below(folder)
    finally:
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(folder, database):
    """`mlflow server`, until the end of the test; the address."""
    (folder / "auth.ini").write_text(AUTH.format(database=database.format("mlflow_auth")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", database.format("mlflow"), "--artifacts-destination", str(folder / "artifacts"),
        "--app-name", "basic-auth",
    ]  # fmt: skip
    environment = projects.Project(projects.TOP).environment | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-for-this-test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = folder / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while not _answers(address):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield address
    finally:
        children = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        psutil.wait_procs(children, timeout=240)
    assert not projects.processes_below(folder)


def _answers(address):
    try:
        return requests.get(f"{address}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


def login(address, name, password):
    """What a member sets; nothing else differs from working alone."""
    return {
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_TRACKING_USERNAME": name,
        "MLFLOW_TRACKING_PASSWORD": password,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a team's server that has two members, and no admin among them."""
    with postgres() as database, mlflow_server(tmp_path_factory.mktemp("server"), database) as address:
        for name, password in MEMBERS.items():
            user = {"username": name, "password": password}
            created = requests.post(f"{address}/api/2.0/mlflow/users/create", json=user, auth=ADMIN, timeout=240)
            assert created.status_code == 200, created.text
        yield address


@pytest.fixture(scope="module")
def shared_project(server, tmp_path_factory):
    """A project after ada's `dvc repro` with that server, what that printed, and her settings."""
    project = projects.create(tmp_path_factory.mktemp("shared"))
    ada = login(server, "ada", MEMBERS["ada"])
    return project, project.repro(**ada), ada


def test_pipeline_reports_to_team_server(shared_project, server, tmp_path):
    project, result, ada = shared_project
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in result.stderr.lower()
    assert f"{server}/#/experiments/" in result.stdout
    assert not (project.top / "mlflow.db").exists()

    held = look(project, str(tmp_path), **ada)
    assert held["location"].startswith("mlflow-artifacts:/")  # members need no key to where the artifacts are
    assert held["view"]
    assert sorted(run["name"] for run in held["runs"]) == ["adam-0", "sgd-0"]
    for name, rate in (("sgd", "0.01"), ("adam", "0.001")):
        run = run_of(held, f"{name}-0")
        trained = json.loads((project.top / f"runs/{name}-0/train.json").read_text())
        tested = json.loads((project.top / f"runs/{name}-0/test.json").read_text())
        assert run["status"] == "FINISHED"
        assert run["params"]["optimizer.lr"] == rate
        assert run["params"]["training.batch_size"] == "16"
        losses = [loss for epoch in trained["step_losses"] for loss in epoch]
        assert [step for step, _, _ in run["steps"]] == list(range(len(losses))) == list(range(14))
        assert [value for _, value, _ in run["steps"]] == pytest.approx(losses)
        assert run["metrics"]["test/accuracy"] == tested["test_accuracy"]
        assert len(run["models"]) == 1

    for name in ("sgd-0", "adam-0"):
        weights = (tmp_path / "weights" / f"{name}.safetensors").read_bytes()
        assert weights == (project.top / f"models/{name}.safetensors").read_bytes()
    champion = json.loads((project.top / "reports/champion.json").read_text())["champion"]
    assert held["champion"] == [run_of(held, champion)["id"], "1"]


def test_wrong_password_warns_and_run_is_uploaded_later(shared_project, server, tmp_path):
    """The second member's runs go into the first one's experiment, and the comparison is both's."""
    project, _, ada = shared_project
    before = look(project, **ada)
    copy = project.copy(tmp_path / "copied")
    record = (copy.top / "runs/adam-0/train.json").read_bytes()
    result = copy.run_stage("train", "adam", "0", **login(server, "ben", "not-the-password-of-ben"))
    assert result.returncode == 0, result.stderr
    assert result.stderr.lower().count("warning") == 1, result.stderr
    assert "MLflow at " in result.stderr
    assert (copy.top / "runs/adam-0/train.json").read_bytes() == record
    assert len(look(project, **ada)["runs"]) == len(before["runs"])

    ben = login(server, "ben", MEMBERS["ben"])
    for stage in (("evaluate", "adam", "0"), ("compare",)):
        result = copy.run_stage(*stage, **ben)
        assert result.returncode == 0, result.stderr
        assert "warning" not in result.stderr.lower()
    after = look(project, **ada)["runs"]
    (new,) = [run for run in after if run["id"] not in {old["id"] for old in before["runs"]}]
    assert new["status"] == "FINISHED"
    assert [step for step, _, _ in new["steps"]] == list(range(14))
    assert "weights/adam-0.safetensors" in new["files"]
    marks = {run["id"]: run["tags"]["comparison"] for run in after}
    assert marks.pop(new["id"]) == "current"
    assert marks == {run["id"]: "earlier" if run["name"] == "adam-0" else "current" for run in before["runs"]}


def test_member_without_read_permission_counts_as_synced(shared_project, server):
    """The server is asked when its experiments were made, to tell a new database from the old one."""
    project, _, ada = shared_project
    api = f"{server}/api/2.0/mlflow/experiments"
    made = requests.post(f"{api}/create", json={"name": "optlab-closed"}, auth=ADMIN, timeout=240).json()
    denied = {
        "username": "ada", "resource_type": "experiment", "resource_id": made["experiment_id"], "permission": "DENY"
    }  # fmt: skip
    grant = f"{server}/api/3.0/mlflow/users/permissions/grant"
    granted = requests.post(grant, json=denied, auth=ADMIN, timeout=240)
    assert granted.status_code == 200, granted.text
    read = {"experiment_id": made["experiment_id"]}
    assert requests.get(f"{api}/get", params=read, auth=("ada", MEMBERS["ada"]), timeout=240).status_code == 403
    result = project.run_forked("optlab", "sync", **ada)
    assert "no runs had something to send" in result.stdout, result.stdout + result.stderr
    assert result.stderr == ""


def test_team_server_requires_login(shared_project, server):
    """Otherwise the tests above would say nothing about the login."""
    for auth in (None, ("ada", "not-the-password-of-ada")):
        answer = requests.get(f"{server}/api/2.0/mlflow/experiments/get?experiment_id=1", auth=auth, timeout=240)
        assert answer.status_code == 401
