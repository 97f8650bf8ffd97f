"""Whose end a process follows: of made-up ancestors, and of real ones."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from optlab.reproduce import rerun
from optlab.system import processes
from optlab.system.errors import OptlabError

STAGE = {"DVC_STAGE": "train@adam-0"}
OPTLAB = {"OPTLAB_PARENT_PID": "20"}
DVC, SCRIPT, INIT = 10, 15, 1


class FakeProcess(SimpleNamespace):
    """Stands for a process: what is not given cannot be read, as of another user's."""

    pid = 0
    session = 5
    above = None

    def parent(self):
        return self.above

    def _read(self, key):
        if key not in vars(self):
            raise psutil.AccessDenied
        return vars(self)[key]

    def environ(self):
        return self._read("variables")

    def exe(self):
        return self._read("program")

    def name(self):
        return self._read("called")


def process_below(*ancestors):
    """This process, with these above it, the nearest first."""
    above = None
    for each in reversed(ancestors):
        each.above, above = above, each
    return FakeProcess(above=above)


def shell(**changes):
    return FakeProcess(**({"program": "/usr/bin/dash", "called": "sh", "variables": STAGE} | changes))


def terminal():
    return shell(called="bash", program="/usr/bin/bash", variables={})


def dvc(**changes):
    return FakeProcess(**({"pid": DVC, "program": "/usr/bin/python3.11", "called": "dvc", "variables": {}} | changes))


def script(**changes):
    return FakeProcess(**({"pid": SCRIPT, "program": "/env/bin/python", "called": "python", "variables": {}} | changes))


def optlab():
    return FakeProcess(pid=20, program="/usr/bin/python3.11", called="optlab", variables={})


def editor():
    """As `code ~/optlab` starts it."""
    return FakeProcess(pid=30, program="/usr/share/code/code", called="code", variables={}, session=30)


def init(**changes):
    return FakeProcess(**({"pid": INIT, "called": "systemd", "session": 0} | changes))


def wrapper(called):
    return FakeProcess(program=f"/usr/bin/{called}", called=called, variables=STAGE)


# The ancestors, what is in the environment, and whose end is followed; None: one of them is gone already.
CHAINS = {
    "dvc in an editor that has a folder called optlab open": (
        [shell(), dvc(), terminal(), editor(), init()], STAGE, [DVC]),
    "by hand in that editor": ([terminal(), editor(), init()], {}, []),
    "by hand": ([terminal(), script(), init()], {}, []),
    "a shell that becomes the command": ([dvc(), terminal(), init()], STAGE, [DVC]),
    "DVC's own packages": ([shell(), dvc(program="/opt/dvc/dvc"), init()], STAGE, [DVC]),
    "DVC's Python API": ([shell(), script(), terminal(), init()], STAGE, [SCRIPT]),
    "the API in a framework's interpreter": ([shell(), script(program="/x/Python"), init()], STAGE, [SCRIPT]),
    "the API in a container's first process": ([shell(), script(pid=INIT)], STAGE, [INIT]),
    "a command that runs the stage": ([wrapper("timeout"), shell(), dvc(), init()], STAGE, [DVC]),
    "an interpreter that runs the stage": ([wrapper("python"), shell(), dvc(), init()], STAGE, [DVC]),
    "a stage of DVC within a stage": ([shell(), dvc(variables={"DVC_STAGE": "all"}), init()], STAGE, [DVC]),
    "a shell whose environment cannot be read": ([shell(variables={}), dvc(), init()], STAGE, [DVC]),
    "optlab repro": ([shell(), dvc(), optlab(), terminal(), init()], STAGE | OPTLAB, [DVC, 20]),
    "optlab reproduce": ([shell(variables={}), optlab(), terminal(), init()], OPTLAB, [20]),
    "dvc is gone": ([init()], STAGE, None),
    "dvc is gone, the shell is not": ([shell(), init()], STAGE, None),
    "dvc is gone, in a container with a shim": ([shell(), init(called="containerd-shim", variables={})], STAGE, None),
    "dvc is gone, in a container that began with a shell": ([shell(), shell(pid=INIT, variables={})], STAGE, None),
    "dvc is gone, the reaper has it as an argument": (
        [init(program="/bin/tini", called="tini", variables={}, cmdline=["tini", "dvc"])], STAGE, None),
    "dvc is gone, the reaper is an interpreter": ([shell(), script(pid=INIT, session=0)], STAGE, None),
    "dvc is gone, optlab is not": ([shell(), init(), optlab()], STAGE | OPTLAB, None),
    "optlab is gone": ([shell(), dvc(), init()], STAGE | OPTLAB, None),
}  # fmt: skip


@pytest.fixture
def no_stage_variables(monkeypatch):
    for name in ("DVC_STAGE", "OPTLAB_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("ancestors", "environment", "expected"), CHAINS.values(), ids=CHAINS)
def test_caller_process_is_found_among_ancestors(monkeypatch, no_stage_variables, ancestors, environment, expected):
    stage = process_below(*ancestors)
    monkeypatch.setattr(processes.psutil, "Process", lambda: stage)
    monkeypatch.setattr(processes, "_get_session_id", lambda each: each.session)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = processes.find_callers()
    assert (None if None in found else [each.pid for each in found]) == expected


def test_vanished_ancestor_interrupts_stage(monkeypatch, no_stage_variables):
    def gone():
        raise psutil.NoSuchProcess(10)

    monkeypatch.setenv("DVC_STAGE", "train@adam-0")
    monkeypatch.setattr(processes.psutil, "Process", lambda: SimpleNamespace(parent=gone))
    with pytest.raises(KeyboardInterrupt):
        processes.exit_with_caller()


@pytest.mark.parametrize("words", [[], ["adam"], ["adam", "0", "1"], ["adam", "one"], ["adam", "-1"]])
def test_missing_stage_arguments_give_usage_message(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["pipeline/train.py", *words])
    with pytest.raises(OptlabError, match=r"^Usage: python pipeline/train.py OPTIMIZER SEED$"):
        processes.parse_arguments("OPTIMIZER", "SEED")
    monkeypatch.setattr(sys, "argv", ["pipeline/train.py", "adam", "01"])
    assert processes.parse_arguments("OPTIMIZER", "SEED") == ["adam", "01"]


def test_usage_message_works_without_docstrings():
    """As with PYTHONOPTIMIZE=2."""
    program = Path(__file__).parents[1] / "pipeline" / "evaluate.py"
    result = subprocess.run([sys.executable, "-OO", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, f"error: Usage: python {program} OPTIMIZER SEED\n")


@pytest.mark.parametrize("names", ["OPTLAB_PARENT_PID OPTLAB_UPLOADER_PARENT", "OPTLAB_PID OPTLAB_SENDER"])
def test_reproduced_stages_follow_their_caller_and_upload_nothing(names):
    """By today's variables, and by those of older revisions. The runs of `optlab repro` are in test_kill_recovery."""
    variables = rerun._build_process_env(Path("tree"), Path("bin"), {})
    parent, uploader = names.split()
    assert (variables[parent], variables[uploader]) == (str(os.getpid()), "nobody")


WORK = """
import sys, time
from pathlib import Path
from optlab.system import processes
from optlab.system.errors import OptlabError

Path("started").touch()
while not Path("look").exists():
    time.sleep(0.05)
try:
    processes.exit_with_caller()
except KeyboardInterrupt:
    Path("said").write_text("orphaned")
    raise
Path("said").write_text("at work")
while not Path("end").exists():
    time.sleep(0.05)
Path("out").touch()
"""
BY_API = "from dvc.repo import Repo; Repo().reproduce()"
AS_REAPER = """
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans below come to this process
subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], start_new_session=True)
sys.stdin.read()
"""


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline of one stage, which looks for its caller once there is a file `look`, and ends once there is `end`."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text("stages:\n  work:\n    cmd: python work.py\n    outs: [out]\n")
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


@contextlib.contextmanager
def start_process(folder, *words):
    own = {key: value for key, value in os.environ.items() if not key.startswith(("DVC", "OPTLAB"))}
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    own["PYTHONPATH"] = str(Path(processes.__file__).parents[2])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *words], cwd=folder, env=own, start_new_session=True,
                                   stdin=subprocess.PIPE, stdout=log, stderr=log)  # fmt: skip
    try:
        yield process
    finally:
        for each in (process, *running_processes(folder)):
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.communicate()


def running_processes(folder):
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if each.cwd() == str(folder) and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def wait_for(reached, seconds=240):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return reached()


def read_marker(folder):
    return (folder / "said").exists() and (folder / "said").read_text()


def test_dvc_python_api_completes_stage(pipeline):
    (pipeline / "look").touch()
    with start_process(pipeline, "-c", BY_API) as process:
        assert wait_for(lambda: read_marker(pipeline)) == "at work", (pipeline / "log").read_text()
        time.sleep(3 * processes._CALLER_POLL_S)
        (pipeline / "end").touch()
        assert process.wait(240) == 0, (pipeline / "log").read_text()
    assert (pipeline / "out").exists()


@pytest.mark.parametrize("words", [("-m", "dvc", "repro"), ("-c", BY_API)], ids=["dvc", "API"])
def test_stage_stops_with_killed_caller(pipeline, words):
    (pipeline / "look").touch()
    with start_process(pipeline, *words) as process:
        assert wait_for(lambda: read_marker(pipeline)) == "at work", (pipeline / "log").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: not running_processes(pipeline))


@pytest.mark.parametrize("words", [("-m", "dvc", "repro"), ("-c", BY_API)], ids=["dvc", "API"])
def test_stage_stops_if_caller_died_early(pipeline, words):
    with start_process(pipeline, *words) as process:
        wait_for(lambda: (pipeline / "started").exists())
        process.send_signal(signal.SIGKILL)
        process.wait()
        (pipeline / "look").touch()
        assert wait_for(lambda: read_marker(pipeline)) == "orphaned"
        wait_for(lambda: not running_processes(pipeline))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "prctl"), reason="only Linux lets a process take orphans in")
def test_stage_adopted_by_python_reaper_stops(pipeline):
    """As the first process of a container does, which may be a Python program."""
    with start_process(pipeline, "-c", AS_REAPER) as reaper:
        wait_for(lambda: (pipeline / "started").exists())
        (run,) = psutil.Process(reaper.pid).children()
        run.kill()
        wait_for(lambda: not run.is_running())
        (pipeline / "look").touch()
        assert wait_for(lambda: read_marker(pipeline)) == "orphaned"


def run_python(code):
    """The number that a program prints."""
    program = f"import resource\nfrom optlab.system import processes\n{code}"
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


FAULTS = """
def work():
    [b"x" * 2**24 for _ in range(4)]

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PEAK = """
processes.limit_memory()
[b"x" * 2**24 for _ in range(8)]
with processes.measure_peak_memory() as peak:
    [b"x" * 2**24 for _ in range(4)]
print(peak.bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept_for_the_next_allocation():
    """The kernel gives no page anew, but by default most of 16,384; huge pages would be 32."""
    assert run_python(f"processes.limit_memory()\n{FAULTS}") < 10
    assert run_python(FAULTS) > 20


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the peak")
def test_peak_counts_kept_memory_that_is_used_again():
    assert 0.95 * 2**26 < run_python(PEAK) < 1.1 * 2**26
