"""Runs and trials on a real Ray cluster of two nodes on this machine: the same bytes as here, whatever dies."""

import contextlib
import json
import re
import shutil
import signal
import tempfile
import time
import zipfile
from concurrent.futures import wait
from pathlib import Path

import projects
import psutil
import pytest
from projects import lock_of, output

from optlab.config import loader
from optlab.orchestration import ray_session
from optlab.orchestration.executor import ClusterOptions, JobSpec
from optlab.orchestration.ray_session import pack_working_dir
from optlab.schema.parameters import PARAMS_FILE
from optlab.system import source_code
from optlab.system.errors import ClusterError, RunsFailedError

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from ray.cluster_utils import Cluster as Nodes

from optlab.orchestration.ray_executor import RayExecutor

# A second between a node's death and the cluster's notice of it, not half a minute.
IMPATIENT = {
    "health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2
}  # fmt: skip


EPOCHS = 8  # of 7 steps each, which rest

# While the file is there, no training gets further: long after its first checkpoint, before its end.
HELD = """\
step = self.state[self.param_groups[0]["params"][0]].get("step", 0)
        while step > 45 and os.path.exists({hold!r}):
            time.sleep(0.01)
        return super()"""


class LocalRayCluster:
    """A cluster; its first node, `a`, is always there. Each node has a folder of its own, as a machine has."""

    def __init__(self, folder):
        self.folder = folder
        self._nodes = Nodes()
        self.start("a", _system_config=IMPATIENT, include_dashboard=False, no_monitor=True)
        self.address = self._nodes.address

    def start(self, name, environment=None, **options):
        """One with a processor, as far as Ray knows."""
        own = self.folder / name
        shutil.rmtree(own, ignore_errors=True)
        (own / "tmp").mkdir(parents=True)
        variables = {"TMPDIR": str(own / "tmp"), "OMP_WAIT_POLICY": "PASSIVE"} | (environment or {})
        return self._nodes.add_node(
            node_name=name, temp_dir=str(own), env_vars=variables, object_store_memory=2**27, include_log_monitor=False,
            **({"num_cpus": 1} | options),
        )  # fmt: skip

    def kill(self, node):
        """As a power failure does, as far as its processes can tell."""
        raylet = next(each for each in node.all_processes["raylet"])
        family = psutil.Process(raylet.process.pid).children(recursive=True)
        self._nodes.remove_node(node, allow_graceful=False)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        while processes := projects.processes_below(self.folder / node._ray_params.node_name):
            for process in processes:  # what Ray's workers had started: the machine is gone
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(self.folder / node._ray_params.node_name)

    def others(self):
        """All nodes but `a`."""
        return list(self._nodes.worker_nodes)

    def workspaces(self, name="*"):
        """The workspaces on the nodes."""
        return [path for path in self.folder.glob(f"{name}/tmp/optlab-*/*/workspaces/*") if path.is_dir()]

    def left(self):
        """Files of ours on the nodes, and processes that work in them; Ray's idle workers may take a moment."""
        deadline = time.monotonic() + 240
        while (processes := projects.processes_below(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return list(self.folder.glob("*/tmp/*")), processes

    def stop(self):
        self._nodes.shutdown()


@pytest.fixture(scope="module")
def ray_cluster():
    folder = Path(tempfile.mkdtemp())  # short: it holds sockets
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))  # a cluster's address is written there, into a folder that Ray expects
        (folder / "ray").mkdir()
        made = LocalRayCluster(folder)
    yield made
    made.stop()
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _remove_extra_nodes(ray_cluster):
    """After each test, there is `a` alone, with nothing on it."""
    yield
    for each in ray_cluster.others():
        ray_cluster.kill(each)
    for path in ray_cluster.folder.glob("a/tmp/*"):
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A project with runs of about two seconds: long enough for a checkpoint, and for a kill in the middle."""
    top = tmp_path_factory.mktemp("slow") / "project"
    top.mkdir()
    project = projects.create(top)
    (top / "custom" / "resting.py").write_text(projects.RESTING)
    project.edit("params.yaml", "class: Adam,", "class: resting.Resting,")
    project.edit("params.yaml", "epochs: 2", f"epochs: {EPOCHS}")
    project.edit("params.yaml", "threads: 2", "threads: 1")
    projects.commit(project, "slow")
    return project


def record(project):
    """What a pipeline leaves in git and in DVC, but for what the machines decided."""
    paths = [project.top / "dvc.lock"]
    for folder in ("runs", "models", "tuning", "reports"):
        paths += [path for path in (project.top / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(project.top)): path.read_bytes() for path in paths}


def read_event_logs(project, run):
    """The events of each of a run's event logs, but for the figures."""
    found = sorted(project.top.glob(f".optlab/event_logs/*-{run}-*/events.jsonl"))
    events = [[json.loads(line) for line in path.read_text().splitlines()] for path in found]
    return [[each for each in every if each["event"] != "metrics"] for every in events]


def repro(project, ray_cluster, *words):
    """`optlab repro` on the cluster, beside the test."""
    return projects.started(project, "optlab", "repro", "--cluster", ray_cluster.address, *words, forked=True)


def find_active(ray_cluster, node, beginning):
    """The workspaces on a node whose job has its first metrics and has not ended."""
    return [
        workspace
        for workspace in ray_cluster.workspaces(node)
        if workspace.name.startswith(beginning)
        and not list(workspace.glob("ended-*"))
        and (
            list(workspace.glob(".optlab/event_logs/*/events.jsonl"))
            or list(workspace.glob(".optlab/trials/*/*/conditions.json"))
        )
    ]


def test_cluster_survives_two_node_deaths_with_identical_record(ray_cluster, slow, tmp_path):
    """One in the middle of a tuning, one in the middle of four runs."""
    here = slow.copy(tmp_path / "here")
    here.edit("params.yaml", "seeds: [0]", "seeds: [0, 1]")
    here.edit("params.yaml", "Resting, lr: 0.001", "Resting, lr: {log: [0.0001, 0.01]}")
    here.edit("params.yaml", "trials: 4", "trials: 2")
    projects.commit(here, "four runs, one optimizer tuned")
    there = here.copy(tmp_path / "there")
    one, other = ray_cluster.start("b"), ray_cluster.start("c")
    with repro(there, ray_cluster) as command:
        projects.until(command, lambda: find_active(ray_cluster, "b", "trial-"))
        ray_cluster.kill(one)
        projects.until(command, lambda: find_active(ray_cluster, "c", "train-adam"))
        ray_cluster.kill(other)
        status = command.wait(240)
    assert status == 0, output(there)
    deaths = re.findall(
        r"^(.+): node ([bc]) \(.*\) or Ray's worker there died: done again \(1 of 2\)$", output(there), re.M
    )
    assert {name for _, name in deaths} == {"b", "c"}, output(there)
    result = here.run_forked("optlab", "repro", "--jobs", "2")
    assert result.returncode == 0, result.stderr
    assert record(there) == record(here)
    for top in (there, here):
        steps = {run["tags"]["optlab.run"]: run["steps"] for run in projects.logged_runs(top).values()}
        assert steps == {f"{name}-{seed}": list(range(7 * EPOCHS)) for name in ("sgd", "adam") for seed in range(2)}
    assert ray_cluster.left() == ([], [])


MORE = """

class Held(Resting):
    def step(self, closure=None):
        return super().step(closure)


class Broken(torch.optim.Adam):
    def step(self, closure=None):
        values = self.param_groups[0]["params"]
        if len(values) > 2 and self.state[values[0]].get("step", 0) > 4:  # a checkpoint has it, too
            raise RuntimeError("the moon is in the wrong house")
        return super().step(closure)
"""


def test_killed_driver_repeats_no_finished_work(ray_cluster, slow, tmp_path):
    """What had ended on a node, and was not collected, is not trained again; what had begun goes on there."""
    project, hold = slow.copy(tmp_path / "project"), tmp_path / "hold"
    hold.touch()
    with (project.top / "custom" / "resting.py").open("a") as file:
        file.write(MORE.replace("return super()", HELD.format(hold=str(hold)), 1))
    project.edit("params.yaml", "{class: SGD,", "{class: resting.Held,")
    ray_cluster.start("b")
    project.edit("params.yaml", "  sgd:", "  broken: {class: resting.Broken, lr: 0.01}\n  sgd:")
    with repro(project, ray_cluster) as command:
        runs = ("train-adam", "train-sgd")
        projects.until(command, lambda: all(find_active(ray_cluster, "*", run) for run in runs))
        command.send_signal(signal.SIGSTOP)  # a slow driver does not slow the runs
        projects.until(command, lambda: find_finished(ray_cluster, "train-adam"))
        sgd = find_active(ray_cluster, "*", "train-sgd")[0]
        projects.until(command, lambda: list(sgd.glob(".optlab/checkpoints/*/*/*/0*")))
        command.kill()
    assert "train@adam" not in (project.top / "dvc.lock").read_text()
    assert not find_finished(ray_cluster, "train-sgd")
    assert ray_cluster.left()[1] == []
    hold.unlink()
    result = project.run_forked("optlab", "repro", "--cluster", ray_cluster.address)
    assert result.returncode == 1 and "Traceback" not in result.stdout + result.stderr
    # A run's own exception is its end, and the others go on.
    reason, summary = result.stderr.splitlines()[-2:]
    assert reason.startswith("broken-0: step 5 fails: RuntimeError: the moon is in the wrong house (")
    assert summary.startswith("error: 1 of 3 runs failed: broken-0: mend it")
    assert "done again" not in result.stderr
    assert {f"{stage}@{run}-0" for stage in ("train", "evaluate") for run in ("sgd", "adam")} < set(lock_of(project))
    ((start, *others),) = read_event_logs(project, "adam-0")
    assert start["event"] == "start" and "resume" not in [each["event"] for each in others]
    (resumed,) = [each for each in read_event_logs(project, "sgd-0")[0] if each["event"] == "resume"]
    assert resumed["step"] > 0
    whole = list(range(7 * EPOCHS))
    for _ in range(240):  # the uploader may still be at work: the command was killed, and then failed
        steps = {run["tags"]["optlab.run"]: run["steps"] for run in projects.logged_runs(project).values()}
        if steps["adam-0"] == steps["sgd-0"] == whole:
            break
        time.sleep(0.25)
    assert steps["adam-0"] == steps["sgd-0"] == whole


def find_finished(ray_cluster, beginning):
    """The workspaces whose job has ended."""
    return [path for path in ray_cluster.workspaces() if path.name.startswith(beginning) and list(path.glob("ended-*"))]


def test_mismatched_node_is_rejected_and_interrupt_cleans_up(ray_cluster, slow, tmp_path, monkeypatch):
    """With a shared folder, what had begun goes on from there at the next call."""
    project, shared = slow.copy(tmp_path / "project"), tmp_path / "shared"
    project.edit("params.yaml", "seeds: [0]", "seeds: [0, 1, 2]")
    project.edit("params.yaml", "  sgd: {class: SGD, lr: 0.01}\n", "")
    hold = tmp_path / "hold"
    hold.touch()
    project.edit("custom/resting.py", "return super()", HELD.format(hold=str(hold)))
    older = ray_cluster.folder / "older"
    (older / "torch-2.0.0.dist-info").mkdir(parents=True)
    (older / "torch-2.0.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.0.0\n")
    with repro(project, ray_cluster, "--shared", str(shared)) as command:
        projects.until(command, lambda: list(shared.glob("*/workspaces/*/.optlab/event_logs/*/events.jsonl")))
        other = ray_cluster.start("other", {"PYTHONPATH": str(older)})  # it joins late
        told = r"^warning: node other \(.*\): torch 2.0.0 \(2.* here\): nothing is done there$"
        projects.until(command, lambda: re.search(told, output(project), re.MULTILINE))
        projects.until(command, lambda: list(shared.glob("*/workspaces/*/.optlab/checkpoints/*/*/*/0*")))
        command.send_signal(signal.SIGINT)
        assert command.wait(240) == 130, output(project)
    hold.unlink()
    assert "stopped: what is complete is kept" in output(project)
    assert f"epoch 1/{EPOCHS}  training loss" in output(project)  # while none was at its end
    assert ray_cluster.left() == ([], [])
    told = r"^node other \(.*\): torch 2.0.0 \(2.* here\): install the same there, or take it out of the cluster$"
    monkeypatch.chdir(project.top)
    with (
        pytest.raises(ClusterError, match=told),
        RayExecutor(loader.load(PARAMS_FILE), Path(), ClusterOptions(ray_cluster.address)) as pool,
    ):
        pool.wait_ready()
    ray_cluster.kill(other)
    result = project.run_forked("optlab", "repro", "--cluster", ray_cluster.address, "--shared", str(shared))
    assert result.returncode == 0, result.stderr
    resumed = [
        each["step"]
        for seed in range(3)
        for each in read_event_logs(project, f"adam-{seed}")[0]
        if each["event"] == "resume"
    ]
    assert max(resumed) > 0
    assert list(shared.iterdir()) == []
    steps = [run["steps"] for run in projects.logged_runs(project).values()]
    assert steps == [list(range(7 * EPOCHS))] * 3


PROGRAM = """
import os, sys, time
from pathlib import Path
from optlab.system import processes

def main():
    processes.exit_with_caller()
    what = sys.argv[1]
    print(what, os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    if what == "dies":  # as Ray's worker does where the kernel wants its memory
        os.kill(int(os.environ["OPTLAB_PARENT_PID"]), 9)
        time.sleep(60)
    if what == "breaks":
        raise ZeroDivisionError("by zero")
    Path(sys.argv[2], what).touch()
    while len(list(Path(sys.argv[2]).iterdir())) < 2:
        time.sleep(0.05)
    Path("left").write_text(what)
"""


def pack_without_preload(config, folder, target):
    """The code as the nodes get it, but that their fork servers import nothing: `PROGRAM` needs no torch."""
    digests = pack_working_dir(config, folder, target)
    with zipfile.ZipFile(target) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    old, new = b"_PRELOAD_TRAINING = (", b"_PRELOAD_TRAINING = () and ("
    assert old in contents["optlab/orchestration/fork_server.py"]
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content.replace(old, new))
    return digests


def test_gpu_sharing_and_retries_of_dead_workers(ray_cluster, small_config, tmp_path, monkeypatch, capfd):
    """A worker that dies three times is given up, an exception is not tried again, and neither holds up the others."""
    for name in ("pipeline", ".dvc", "met"):
        (tmp_path / name).mkdir()
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / "pipeline" / "work.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_session, "pack_working_dir", pack_without_preload)
    config = small_config(training={"threads": 2})
    ray_cluster.start("g", num_cpus=4, num_gpus=1)
    lines = []

    def hear(line):
        lines.append(line)
        return True

    names = ["dies", "breaks", "1", "2"]
    with RayExecutor(config, Path(), ClusterOptions(address=ray_cluster.address, num_gpus=0.5)) as pool:
        jobs = {}
        for name in names:
            argv = ["pipeline/work.py", name, str(tmp_path / "met")]
            jobs[name] = pool.submit(JobSpec(name, argv, Path(), name, outputs=(Path("left"),), on_line=hear))
        (tmp_path / "pipeline" / "another.py").touch()
        pool.wait_ready()
        (tmp_path / "pipeline" / "work.py").write_text(f"{PROGRAM}# another thought")
        with pytest.raises(
            RunsFailedError, match=r"^pipeline/work.py changed since the nodes got it: repeat the command$"
        ):
            pool.wait_ready()
        wait(jobs.values())
    assert [jobs[name].status for name in names] == [1, 1, 0, 0]
    said = [line.split() for line in lines if line[0] in "12b"]
    assert sorted(said) == [[name, "2", "0"] for name in ("1", "2", "breaks")]  # threads, GPU
    assert (
        "died 3 times" in jobs["dies"].describe_failure()
        and jobs["breaks"].describe_failure() == "ZeroDivisionError: by zero"
    )
    said = re.findall(
        r"^dies: node g \(.*\) or Ray's worker there died: done again \((\d) of 2\)$", capfd.readouterr().err, re.M
    )
    assert said == ["1", "2"]
    assert (tmp_path / "left").read_text() in "12"
    assert ray_cluster.left() == ([], [])


def test_runtime_package_contains_only_code(tmp_path, monkeypatch):
    """Of this repository, with all that lies around in it."""
    monkeypatch.chdir(projects.TOP)
    config = loader.load(PARAMS_FILE)
    first, second = (pack_working_dir(config, Path(), tmp_path / name) for name in ("first", "second"))
    assert first == second and source_code.find_changed(first) == []
    assert source_code.find_changed(first | {"params.yaml": "", "gone.py": ""}) == ["gone.py", "params.yaml"]
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (tmp_path / "first").stat().st_size < 2e6
    with zipfile.ZipFile(tmp_path / "first") as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"optlab", "pipeline", "custom", "params.yaml", "dvc.yaml"}
    assert {"optlab/orchestration/ray_worker.py", "optlab/analysis/report.html.jinja", "pipeline/train.py"} < set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".db", ".bin", ".safetensors"))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-gpus", "1"], "--num-gpus and --shared are for the nodes of a cluster: name it with --cluster"),
        (["--cluster", "ray://127.0.0.1:10001"], "run the command on a machine of the cluster"),
        (["--cluster", "127.0.0.1:9"], "127.0.0.1:9: no Ray cluster answers there ("),
    ],
)
def test_invalid_cluster_options_are_rejected(slow, words, said):
    result = slow.run_forked("optlab", "repro", *words)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and said in result.stderr and len(result.stderr.splitlines()) == 1
