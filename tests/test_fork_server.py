"""Stages in children of a process that has imported what they need."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

import optlab
from optlab.orchestration.jobs import ForkServer, Job
from optlab.system.errors import ERROR_FILE_VARIABLE

PROGRAM = """
import json, os, sys
def main():
    from optlab.system.errors import DataError
    what = sys.argv[1]
    if what == "say":
        print(json.dumps([sys.argv, os.getcwd(), os.environ["COLOUR"], sorted(os.sched_getaffinity(0)),
                          os.getsid(0) == os.getpid(), sorted(n for n in sys.modules if n == "torch")]))
        print("a warning", file=sys.stderr)
    elif what == "refuse":
        raise DataError("the data is gone")
    elif what == "exit":
        sys.exit(3)
    elif what == "break":
        raise ZeroDivisionError("by zero")
    elif what == "die":
        os.kill(os.getpid(), 9)
    elif what == "stay":
        print("staying", flush=True)
        import time; time.sleep(600)
"""


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """Its working directory; a module of `pipeline`, and one that is not."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("pipeline", "elsewhere"):
        (folder / name).mkdir()
        (folder / name / "work.py").write_text(PROGRAM)
    (folder / "looked_at.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def fork_server(top):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        with ForkServer(busy_wait=True) as server:
            yield server


@pytest.fixture(autouse=True)
def _here(top, monkeypatch):
    monkeypatch.chdir(top)


def run(fork_server, top, what, **environment):
    job = fork_server.start(what, f"python pipeline/work.py {what}", top, [0], environment, lambda line: False)
    job.wait()
    return job


def wait_for_lines(*jobs):
    deadline = time.monotonic() + 60
    while not all(job.lines for job in jobs):
        assert time.monotonic() < deadline and all(job.status is None for job in jobs)
        time.sleep(0.01)


def test_fork_server_child_equals_separate_process(fork_server, top):
    job = run(fork_server, top, "say", COLOUR="blue")
    said, warning = job.lines
    assert json.loads(said) == [["pipeline/work.py", "say"], str(top), "blue", [0], True, ["torch"]]
    assert warning == "a warning\n"
    assert (job.status, "COLOUR" in os.environ) == (0, False)


def test_fork_server_job_reports_exit_status(fork_server, top, tmp_path):
    reason = tmp_path / "reason"
    assert run(fork_server, top, "exit").status == 3
    refused = run(fork_server, top, "refuse", **{ERROR_FILE_VARIABLE: str(reason)})
    assert (refused.status, refused.lines, reason.read_text()) == (1, ["error: the data is gone\n"], "the data is gone")
    broken = run(fork_server, top, "break")
    assert broken.status == 1 and broken.lines[-1] == "ZeroDivisionError: by zero\n"
    died = run(fork_server, top, "die")
    assert (died.status, died.describe_exit()) == (-9, "killed by SIGKILL: perhaps there was not enough memory")


def test_fork_server_runs_jobs_concurrently_and_reports_ends(fork_server, top):
    ended = []
    jobs = [fork_server.start(f"{each}", "python pipeline/work.py stay", top, [], {}, lambda line: False, ended.append)
            for each in range(3)]  # fmt: skip
    wait_for_lines(*jobs)
    os.killpg(jobs[1].pid, signal.SIGKILL)
    jobs[1].wait()
    assert (jobs[0].poll(), jobs[1].poll(), ended) == (None, -9, ["1"])
    for job in (jobs[0], jobs[2]):
        os.killpg(job.pid, signal.SIGINT)
        assert job.wait() == 130


@pytest.mark.parametrize(
    "command", ["python elsewhere/work.py say", "nice python pipeline/work.py say", "python pipeline/work.py say; true"]
)
def test_unsupported_command_runs_in_separate_process(fork_server, top, command, monkeypatch):
    """Which is one that only defines the function, so it says nothing."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    job = fork_server.start("x", f"{command} && echo done", top, [0], {}, lambda line: False)
    assert job.wait() == 0
    assert job.lines == ["done\n"]


def test_fork_server_refuses_changed_code(top, tmp_path, monkeypatch):
    """What the process has imported is not what is on the disk any more."""
    copy = shutil.copytree(Path(optlab.__file__).parent, tmp_path / "optlab")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ForkServer(busy_wait=False) as fork_server:
        assert run(fork_server, top, "exit").status == 3
        path = copy / "system" / "text.py"
        known = path.stat()
        os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns + 1))
        job = run(fork_server, top, "exit")
    assert job.status == 1 and job.lines == []
    assert "text.py changed since this command began, so it was not run: repeat the command" in job.describe_exit()


def test_killed_fork_server_ends_its_jobs(top):
    with ForkServer(busy_wait=True) as fork_server:
        job = fork_server.start("x", "python pipeline/work.py stay", top, [], {}, lambda line: False)
        wait_for_lines(job)
        fork_server._process.kill()
        assert job.wait() == 1 and job.describe_exit() == "the process that runs the stages has ended"
        deadline = time.monotonic() + 20
        while psutil.pid_exists(job.pid) and psutil.Process(job.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert run(fork_server, top, "exit").describe_exit() == "the process that runs the stages has ended"


@pytest.mark.parametrize(
    ("status", "said"),
    [(1, "ValueError: no"), (-signal.SIGKILL, "killed by SIGKILL: perhaps there was not enough memory")],
)
def test_killed_job_reason_ignores_earlier_output(status, said):
    job = Job("adam-0", None, lambda name: None)
    job.receive_line("ValueError: no")
    job.end(status)
    assert job.describe_failure() == said
