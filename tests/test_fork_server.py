"""Jobs in children of the fork server."""

import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import psutil
import pytest

import optlab
from optlab.orchestration.executor import keep_line
from optlab.orchestration.fork_server import ForkServer, Job, parse_stage_command

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
    """Working directory with a module of `pipeline`, and one elsewhere."""
    folder = tmp_path_factory.mktemp("stages")
    for name in ("pipeline", "elsewhere"):
        (folder / name).mkdir()
        (folder / name / "work.py").write_text(PROGRAM)
    return folder


@pytest.fixture(scope="module")
def server(top):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        with ForkServer(busy_wait=True) as started:
            yield started


@pytest.fixture(autouse=True)
def _here(top, monkeypatch):
    monkeypatch.chdir(top)


def run(server, top, what, error_file=None, **environment):
    job = server.start(what, f"python pipeline/work.py {what}", top, [0], environment, keep_line, error_file)
    job.result()
    return job


def wait_for_lines(*jobs):
    deadline = time.monotonic() + 240
    while not all(job.lines for job in jobs):
        assert time.monotonic() < deadline and all(job.status is None for job in jobs)
        time.sleep(0.01)


def test_fork_server_child_equals_separate_process(server, top):
    job = run(server, top, "say", COLOUR="blue")
    said, warning = job.lines
    assert json.loads(said) == [["pipeline/work.py", "say"], str(top), "blue", [0], True, ["torch"]]
    assert warning == "a warning\n"
    assert (job.status, "COLOUR" in os.environ) == (0, False)


def test_fork_server_job_reports_exit_status(server, top, tmp_path):
    error_file = tmp_path / "error"
    error_file.write_text("of an earlier job")
    assert run(server, top, "exit").status == 3
    assert run(server, top, "die", error_file).error_message == ""
    refused = run(server, top, "refuse", error_file)
    assert (refused.status, refused.lines) == (1, ["error: the data is gone\n"])
    assert refused.error_message == error_file.read_text() == "the data is gone"
    broken = run(server, top, "break")
    assert broken.status == 1 and broken.lines[-1] == "ZeroDivisionError: by zero\n"
    died = run(server, top, "die")
    assert (died.status, died.describe_exit()) == (-9, "killed by SIGKILL: perhaps there was not enough memory")


def test_fork_server_runs_jobs_concurrently_and_reports_ends(server, top):
    jobs = [server.start(f"{each}", "python pipeline/work.py stay", top, [], {}, keep_line) for each in range(3)]
    wait_for_lines(*jobs)
    os.killpg(jobs[1].pid, signal.SIGKILL)
    assert wait(jobs, return_when=FIRST_COMPLETED).done == {jobs[1]}
    assert (jobs[0].poll(), jobs[1].poll()) == (None, -9)
    for job in (jobs[0], jobs[2]):
        os.killpg(job.pid, signal.SIGINT)
        assert job.result() == 130


@pytest.mark.parametrize("more", [" # note", "\npython pipeline/work.py say", " | cat", " $HOME"])
def test_command_for_a_shell_is_no_stage_command(top, more):
    command = "python pipeline/work.py say"
    assert parse_stage_command(command, top) == ["pipeline/work.py", "say"]
    assert parse_stage_command(command + more, top) is None


@pytest.mark.parametrize(
    "command",
    [
        "python elsewhere/work.py say",
        "nice python pipeline/work.py say",
        "python pipeline/work.py say; true",
    ],
)
def test_unsupported_command_runs_in_separate_process(server, top, command, monkeypatch):
    """There, the module only defines `main`, so it prints nothing."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    job = server.start("x", f"{command} && echo done", top, [0], {}, keep_line)
    assert job.result() == 0
    assert job.lines == ["done\n"]


def test_fork_server_refuses_changed_code(top, tmp_path, monkeypatch):
    """The server has imported what is on the disk no more."""
    copy = shutil.copytree(Path(optlab.__file__).parent, tmp_path / "optlab")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ForkServer(busy_wait=False) as server:
        assert run(server, top, "exit").status == 3
        path = copy / "system" / "text.py"
        known = path.stat()
        os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns + 1))
        job = run(server, top, "exit")
    assert job.status == 1 and job.lines == []
    assert "text.py changed since this command began, so it was not run: repeat the command" in job.describe_exit()


FAILING_FORKS = """
import os, socket, sys
from optlab.orchestration import fork_server

fork, failures = os.fork, [None, BlockingIOError(11, "Resource temporarily unavailable"), OSError(12, "No memory")]

def fail_some():
    if failures and (failure := failures.pop(0)):
        raise failure
    return fork()

os.fork = fail_some
fork_server.main(socket.socket(fileno=int(sys.argv[1])), [])
"""


def test_failed_fork_fails_one_job_only(top, tmp_path, monkeypatch):
    """The job before it runs on, and one after it runs."""
    (tmp_path / "server.py").write_text(FAILING_FORKS)
    monkeypatch.setattr(ForkServer, "PROGRAM", (str(tmp_path / "server.py"),))
    with ForkServer(busy_wait=True) as server:
        running = server.start("x", "python pipeline/work.py stay", top, [], {}, keep_line)
        wait_for_lines(running)
        for text in ("Resource temporarily unavailable", "No memory"):
            failed = run(server, top, "exit")
            assert failed.status == 1 and failed.describe_failure().startswith("cannot be started (")
            assert text in failed.describe_failure() and "repeat the command" in failed.describe_failure()
        assert run(server, top, "exit").status == 3
        assert running.poll() is None
        os.killpg(running.pid, signal.SIGKILL)
        assert running.result() == -9


def test_client_without_processes_or_threads_fails_one_job_only(server, top, monkeypatch):
    def fail(*arguments, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr("optlab.orchestration.fork_server.subprocess.Popen", fail)
        failed = server.start("x", "echo done", top, [], {}, keep_line)
        assert failed.result() == 1 and "Resource temporarily unavailable" in failed.describe_failure()
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", lambda thread: fail())
        assert run(server, top, "exit").status == 1
    assert run(server, top, "exit").status == 3


def test_killed_fork_server_ends_its_jobs(top):
    with ForkServer(busy_wait=True) as server:
        job = server.start("x", "python pipeline/work.py stay", top, [], {}, keep_line)
        wait_for_lines(job)
        server._process.kill()
        assert job.result() == 1 and job.describe_exit() == "the process that runs the stages has ended"
        deadline = time.monotonic() + 240
        while psutil.pid_exists(job.pid) and psutil.Process(job.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert run(server, top, "exit").describe_exit() == "the process that runs the stages has ended"


@pytest.mark.parametrize(
    ("status", "said"),
    [(1, "ValueError: no"), (-signal.SIGKILL, "killed by SIGKILL: perhaps there was not enough memory")],
)
def test_killed_job_reason_ignores_earlier_output(status, said):
    job = Job("adam-0")
    job.receive_line("ValueError: no")
    job.end(status)
    assert job.describe_failure() == said
