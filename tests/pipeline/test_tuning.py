"""Tunings, for real: the same bytes however many are at work or killed; and nobody sees the test split."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from projects import TOP, commit, lock_of

from optlab import records
from optlab.data import cifar10
from optlab.orchestration import cost, executor, repro, tuning_session
from optlab.orchestration.executor import JOBS_VARIABLE, LocalExecutor
from optlab.orchestration.fork_server import ForkServer
from optlab.records import Choice, Environment, TrialsRecord, TuningFiles, ValidationMetrics
from optlab.schema.optimizer import OptimizerSpec
from optlab.system import files, locks, repository
from optlab.system.errors import BusyError, RunsFailedError
from optlab.tracking import run_metadata
from optlab.tuning import selection, trial
from optlab.tuning.search import Trial
from optlab.tuning.session import TuningSession
from optlab.tuning.trial import TrialRequest, TrialResult, get_lock_name, train_trial

ENTRY = {"class": "SGD", "lr": {"log": [0.001, 10.0]}, "momentum": {"choice": [0.0, 0.9]}}


@pytest.fixture(scope="module")
def fork_server():
    """One process for all tunings: each would start its own."""
    with ForkServer(busy_wait=False) as started:
        yield started


@pytest.fixture
def top(tmp_path, sample, monkeypatch):
    """The top of a repository with the sample's images."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / "data").mkdir()
    shutil.copytree(sample, tmp_path / repository.DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        cifar10, "_forbidden_reason", ""
    )  # a trial that is trained here forbids it to this process alone
    return tmp_path


@pytest.fixture
def config(small_config):
    return small_config(
        optimizers={"mine": ENTRY}, data={"train_size": 100, "validation_size": 20},
        training={"epochs": 2, "batch_size": 16, "threads": 1}, tuning={"trials": 5, "halving": 2},
    )  # fmt: skip


class SharedForkServer:
    """Passes for a process of one's own, and perhaps kills a job."""

    def __init__(self, fork_server, killed=None):
        self.fork_server, self.killed, self.started, self.jobs, self.most = fork_server, killed, [], [], 0

    def start(self, name, words, folder, *arguments):
        job = self.fork_server.start(name, words, folder.resolve(), *arguments)
        self.started.append(name)
        self.jobs.append(job)
        self.most = max(self.most, sum(not each.done() for each in self.jobs))
        if len(self.started) == self.killed:
            while not job.pid and job.status is None:
                time.sleep(0.01)
            os.kill(job.pid, signal.SIGKILL)
        return job


def run_tuning(config, monkeypatch, fork_server, jobs=2, killed=None, name="mine", seed=0):
    """The bytes of both files, and the trials that were started."""
    shared = SharedForkServer(fork_server, killed)
    with monkeypatch.context() as patch:
        patch.setattr(LocalExecutor, "from_config", lambda config: LocalExecutor(jobs, False, shared))
        tuning_session.tune(config, Path(), name, seed)
    folder = Path(f"tuning/{name}-{seed}")
    return {each: (folder / each).read_bytes() for each in ("choice.json", "trials.json")}, shared.started


def test_tuning_bytes_are_independent_of_parallelism_and_kills(top, config, monkeypatch, fork_server):
    first, started = run_tuning(config, monkeypatch, fork_server, jobs=1)
    found = TrialsRecord.model_validate_json(first["trials.json"]).trials
    assert len(found) == 6 and {each.status for each in found} >= {"completed", "stopped"}
    assert len(started) > 6  # those that go on are started more than once
    for jobs, killed in ((2, None), (4, None), (2, 4)):
        shutil.rmtree("tuning")
        shutil.rmtree(".optlab/trials")
        if killed:
            with pytest.raises(RunsFailedError, match=r"1 of \d+ trials failed \(.* killed by SIGKILL"):
                run_tuning(config, monkeypatch, fork_server, jobs, killed)
            assert not Path("tuning").exists()
        again, more = run_tuning(config, monkeypatch, fork_server, jobs)
        assert again == first
        assert len(more) < len(started) if killed else len(more) == len(started)


class FakePipeline:
    """A pipeline of which all is stale."""

    def __init__(self, config):
        self.names = [TuningFiles(Path(), *run).stage for run in config.list_runs()]
        self.committed = []
        self.is_stale = self.prepare = lambda name: True
        self.lock_stages, self.commit = contextlib.nullcontext, self.committed.append


def test_searches_side_by_side_write_same_bytes(top, config, monkeypatch, fork_server):
    """Two at a time, which share the cores; one is lost with its trial, the others are completed."""
    entries = {"mine": config.optimizers["mine"], "other": OptimizerSpec.model_validate(ENTRY | {"momentum": 0.9})}
    config = config.model_copy(update={"optimizers": entries, "seeds": [0, 1]})
    expected = {}
    for name, seed in config.list_runs():
        expected[f"{name}-{seed}"] = run_tuning(config, monkeypatch, fork_server, jobs=1, name=name, seed=seed)[0]
    shutil.rmtree("tuning")
    shutil.rmtree(".optlab/trials")
    pipeline, shared = FakePipeline(config), SharedForkServer(fork_server, killed=3)
    with LocalExecutor(2, False, shared) as workers, pytest.raises(RunsFailedError, match=r"a tuning failed: tune@"):
        repro._run_searches(pipeline, config, Path(), workers, 2)
    assert len(pipeline.committed) == 3 and shared.most == 2
    with LocalExecutor(2, False, SharedForkServer(fork_server)) as workers:
        repro._run_searches(FakePipeline(config), config, Path(), workers, 2)
    files = {path.parent.name: {} for path in Path("tuning").glob("*/choice.json")}
    for folder, found in files.items():
        found |= {name: Path("tuning", folder, name).read_bytes() for name in ("choice.json", "trials.json")}
    assert files == expected
    assert expected["mine-0"] != expected["other-0"]


def test_stopped_executor_starts_no_job(top, fork_server):
    with LocalExecutor(1, False, SharedForkServer(fork_server)) as workers:
        workers.stop()
        with pytest.raises(RunsFailedError, match="trial 3 was not started: the command was stopped"):
            workers.submit(executor.JobSpec("trial 3", ["optlab.tuning.trial"], Path(), "key"))


def test_parallel_trials_follow_caller_setting(config, monkeypatch):
    monkeypatch.setenv(JOBS_VARIABLE, "7")
    executors = [LocalExecutor.from_config(config), LocalExecutor.from_config(config, 3)]
    monkeypatch.delenv(JOBS_VARIABLE)
    monkeypatch.setattr(executor, "list_cores", lambda: list(range(2 * config.training.threads)))
    executors.append(LocalExecutor.from_config(config))
    assert [each.max_workers for each in executors] == [7, 3, 2]


def test_one_run_leaves_its_trials_all_cores(config, monkeypatch, capsys):
    """The number of runs limits the runs at a time, and not the trials of their searches."""
    asked = []

    class Seen:
        def __init__(self, busy_wait):
            raise Enough

    class Enough(Exception):
        """To have seen."""

    monkeypatch.setattr(repro, "ForkServer", Seen)
    monkeypatch.setattr(executor, "can_busy_wait", lambda config, jobs: asked.append(jobs))
    monkeypatch.setenv(JOBS_VARIABLE, "6")
    one = config.model_copy(update={"seeds": [0]})
    assert any(spec.ranges for spec in one.optimizers.values())
    plain = one.model_copy(update={"optimizers": {"sgd": OptimizerSpec.model_validate({"class": "SGD"})}})
    for each in (one, plain):
        with pytest.raises(Enough):
            repro.run_pipeline(each, Path(), None)
    assert asked == [6, 1]
    assert capsys.readouterr().out.count(", 1 at a time") == 2


def test_search_that_cannot_be_recorded_does_not_stop_the_others(config, monkeypatch, capsys):
    """Four searches: one fails, one cannot be committed, one cannot begin, and one is complete."""
    names = ["a", "b", "c", "d"]
    spec = OptimizerSpec.model_validate({"class": "SGD", "lr": {"log": [0.001, 1]}})
    three = config.model_copy(update={"seeds": [0], "optimizers": dict.fromkeys(names, spec)})
    committed = []

    def tune(config, folder, name, *_):
        if name == "a":
            raise RunsFailedError("the moon is in the wrong house")

    class Pipeline:
        names = tuple(f"tune@{name}-0" for name in "abcd")

        def prepare(self, stage):
            if stage == "tune@d-0":
                raise BusyError("another process holds DVC's lock")
            return True

        def commit(self, stage):
            if stage == "tune@b-0":
                raise BusyError("another process holds DVC's lock")
            committed.append(stage)

        lock_stages = staticmethod(contextlib.nullcontext)
        is_stale = staticmethod(lambda stage: True)

    class Pool:
        wait_ready = staticmethod(lambda: None)

    monkeypatch.setattr(tuning_session, "tune", tune)
    with pytest.raises(RunsFailedError, match="a tuning failed: tune@a-0, tune@b-0, tune@d-0"):
        repro._run_searches(Pipeline(), three, Path(), Pool(), None)
    assert committed == ["tune@c-0"]
    said = capsys.readouterr().err.splitlines()
    busy = "another process holds DVC's lock"
    assert said == ["tune@a-0: the moon is in the wrong house", f"tune@b-0: {busy}", f"tune@d-0: {busy}"]


def test_interrupt_while_searches_begin_stops_them(config, monkeypatch):
    """The second stage is being prepared while the first search runs."""
    stopped = threading.Event()
    spec = OptimizerSpec.model_validate({"class": "SGD", "lr": {"log": [0.001, 1]}})
    two = config.model_copy(update={"seeds": [0], "optimizers": dict.fromkeys("ab", spec)})

    def prepare(stage):
        if stage == "tune@b-0":
            raise KeyboardInterrupt
        return True

    class Pipeline:
        names = ("tune@a-0", "tune@b-0")
        lock_stages = staticmethod(contextlib.nullcontext)
        is_stale = staticmethod(lambda stage: True)

    class Pool:
        stop, wait_ready = staticmethod(stopped.set), staticmethod(lambda: None)

    pipeline = Pipeline()
    pipeline.prepare = prepare
    monkeypatch.setattr(tuning_session, "tune", lambda *_: stopped.wait(240))
    with pytest.raises(KeyboardInterrupt):
        repro._run_searches(pipeline, two, Path(), Pool(), None)
    assert stopped.is_set()


def test_measurement_ignores_what_an_optimizer_prints(fork_server, monkeypatch):
    """Without a number there is no estimate; the training says what is wrong."""

    class Printed:
        lines = ("....", "no number\n")

        def result(self):
            return 0

    class Server:
        def start(self, *_):
            return Printed()

    assert cost._run_measurement(Path(), "sgd", 1, Server()) is None
    Printed.lines = ("....\n", "[1, 2, [], 3.0]\n")
    assert cost._run_measurement(Path(), "sgd", 1, Server()) == cost.OptimizerCost(1, 2, [], 3.0)


def test_runs_of_all_optimizers_share_the_jobs(small_config, monkeypatch):
    """Fifty runs of a minute each, 32 at a time."""
    spec = {"class": "SGD", "lr": 0.01}
    config = small_config(seeds=[0, 1, 2, 3, 4], optimizers={f"o{number}": spec for number in range(10)})
    stale = [f"train@{name}-{seed}" for name, seed in config.list_runs()]
    measured = cost.OptimizerCost(0, 0, [], config.total_steps / 60)
    monkeypatch.setattr(cost, "_run_measurement", lambda *_: measured)
    assert cost.describe(config, Path(), stale, 32, None, is_versus=True).startswith("50 runs, about 2 minutes on ")


def test_fork_server_inherits_number_of_jobs(top, config, monkeypatch):
    class Enough(Exception):
        """To have seen."""

    class Seen:
        def __init__(self, busy_wait):
            raise Enough(os.environ[JOBS_VARIABLE])

    monkeypatch.setenv(JOBS_VARIABLE, "2")
    monkeypatch.setattr(repro, "ForkServer", Seen)
    with pytest.raises(Enough, match=r"^5$"):
        repro.run_pipeline(config, Path(), 5)


def test_known_trials_are_not_retrained(top, config, monkeypatch, fork_server):
    first, _ = run_tuning(config, monkeypatch, fork_server)
    again, started = run_tuning(config, monkeypatch, fork_server)
    assert (again, started) == (first, [])
    assert Environment.read(TuningFiles(Path(), "mine", 0).environment).threads == 1
    shutil.rmtree(".optlab")  # as in a fresh clone: it is on record
    again, started = run_tuning(config, monkeypatch, fork_server)
    assert (again, started) == (first, [])
    more = config.model_copy(update={"tuning": config.tuning.model_copy(update={"trials": 8})})
    names = run_tuning(more, monkeypatch, fork_server)[1]
    assert len(names) > 0 and "the default with seed" not in " ".join(names)
    recorded = TrialsRecord.model_validate_json(first["trials.json"]).trials
    known = {each.key for each in recorded if each.index is None or each.index < 3}  # the default and the first half
    assert known < {each.key for each in TrialsRecord.read(Path("tuning/mine-0/trials.json")).trials}


def test_search_of_each_seed_has_own_points_and_one_for_all_is_trained_once(top, config, monkeypatch, fork_server):
    (first, _), (second, started) = (run_tuning(config, monkeypatch, fork_server, seed=seed) for seed in (0, 1))
    trials = [TrialsRecord.model_validate_json(each["trials.json"]).trials for each in (first, second)]
    assert len(started) > 6 and trials[0][0].values == trials[1][0].values  # the defaults'
    assert not {trial.seed for trial in trials[0]} & {trial.seed for trial in trials[1]}
    assert not {str(trial.values) for trial in trials[0][1:]} & {str(trial.values) for trial in trials[1][1:]}
    assert {trial.search for trial in trials[1]} == {1}
    shared = config.model_copy(update={"tuning": config.tuning.model_copy(update={"per_seed": False})})
    shutil.rmtree(".optlab")  # as in a fresh clone, whose record has the trials of the seed 0
    shared = shared.model_copy(update={"seeds": [0, 1, 2]})
    again, started = run_tuning(shared, monkeypatch, fork_server, seed=2)
    assert (again, started) == (first, [])


def test_run_trains_with_selected_values(top, config, monkeypatch, fork_server):
    run_tuning(config, monkeypatch, fork_server)
    found = Choice.read(Path("tuning/mine-0/choice.json"))
    settled, choice = records.load_chosen_config(config, Path(), "mine", 0)
    tags = run_metadata.build_trial_tags(settled, choice, 0)
    assert selection.dump_entry(settled.get_optimizer("mine")) == found.entry
    assert tags == {"tuned.search": "0", "tuned.trial": str(found.trial)}


def test_later_checkpoint_does_not_change_requested_validation(top, config):
    """As after an edit of `halving`, or a kill between a checkpoint and the look."""
    settled = config.model_copy(
        update={"optimizers": {"mine": OptimizerSpec.model_validate({"class": "SGD", "lr": 0.01})}}
    )
    first = train_trial(TrialRequest.from_config(settled, "mine", 1, 5, {}), top / "trial")
    assert first.look.step == 5
    assert (
        train_trial(TrialRequest.from_config(settled, "mine", 1, 5, {}), top / "trial") == first
    )  # at once, from where it stopped
    further = train_trial(TrialRequest.from_config(settled, "mine", 1, 9, {}), top / "trial")
    assert train_trial(TrialRequest.from_config(settled, "mine", 1, 5, {}), top / "trial") == first
    assert (
        train_trial(TrialRequest.from_config(settled, "mine", 1, 9, {}), top / "trial")
        == further
        == train_trial(TrialRequest.from_config(settled, "mine", 1, 9, {}), top / "a")
    )


def test_step_at_which_trial_diverges_is_the_same_after_a_rung(top, config):
    diverging = OptimizerSpec.model_validate({"class": "SGD", "lr": 30.0})
    settled = config.model_copy(update={"optimizers": {"mine": diverging}})
    whole, early, rest = (
        train_trial(TrialRequest.from_config(settled, "mine", 1, until, {}), top / folder)
        for until, folder in ((28, "a"), (2, "b"), (28, "b"))
    )
    assert early.ending is None and early.look.step == 2
    assert whole == rest and whole.ending == "diverged"
    assert 2 < whole.look.step < 28 and whole.look.accuracy is None


def test_rejected_value_is_recorded_as_failed_trial(top, config):
    """As beyond the edge of a range."""
    spec = OptimizerSpec.model_validate({"class": "Adadelta", "rho": 1.5})
    settled = config.model_copy(update={"optimizers": {"mine": spec}})
    result = train_trial(TrialRequest.from_config(settled, "mine", 1, 14, {}), top / "trial")
    assert (result.ending, result.reason) == (
        "failed", "params.yaml: optimizers.mine.rho: Adadelta refuses 1.5 (Invalid rho value: 1.5)"
    )  # fmt: skip


def with_custom_class(config, text):
    """With an optimizer of that text, in a module that no other test has."""
    name = f"mine_{time.time_ns()}"
    Path("custom").mkdir()
    Path("custom", f"{name}.py").write_text(text)
    entry = {"class": f"{name}.Mine", "lr": {"log": [0.001, 0.1]}}
    return config.model_copy(update={"optimizers": {"mine": OptimizerSpec.model_validate(entry)}})


def test_failed_trial_is_reported_and_recorded(top, config, monkeypatch, fork_server, capfd):
    failing = with_custom_class(config, """
import torch

class Mine(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["lr"] > 0.01 and len(self.param_groups[0]["params"]) > 2:
            raise ValueError("too fast")
        return super().step(closure)
""")  # fmt: skip
    run_tuning(failing, monkeypatch, fork_server)
    said = capfd.readouterr().err
    assert re.search(r"mine-0: trial \d failed: step 0 fails: ValueError: too fast \(.*, line 7\)", said)
    assert run_tuning(failing, monkeypatch, fork_server)[1] == []
    assert "failed" in {each.status for each in TrialsRecord.read(Path("tuning/mine-0/trials.json")).trials}


def test_resource_error_is_not_recorded_as_trial_failure(top, config, monkeypatch, fork_server):
    """The tuning ends, and once the machine is mended, the next call trains what it has not got."""
    lacking = with_custom_class(config, """
import pathlib
import torch

class Mine(torch.optim.SGD):
    def step(self, closure=None):
        if len(self.param_groups[0]["params"]) > 2 and not pathlib.Path("mended").exists():
            raise OSError(28, "No space left on device")
        return super().step(closure)
""")  # fmt: skip
    with pytest.raises(RunsFailedError, match=r"4 of 4 trials failed .*No space left on device"):
        run_tuning(lacking, monkeypatch, fork_server)
    Path("mended").touch()
    run_tuning(lacking, monkeypatch, fork_server)
    assert "failed" not in {each.status for each in TrialsRecord.read(Path("tuning/mine-0/trials.json")).trials}


EDITING = """
import pathlib
import torch

class Mine(torch.optim.SGD):
    def step(self, closure=None):
        own = pathlib.Path(__file__)
        if len(self.param_groups[0]["params"]) > 2 and not own.with_name("edited").exists():
            own.with_name("edited").touch()
            own.write_text(own.read_text() + "# another thought\\n")
        return super().step(closure)
"""


def test_code_edited_during_trial_is_not_recorded(top, config, monkeypatch, fork_server):
    edited = with_custom_class(config, EDITING)
    with pytest.raises(RunsFailedError, match=r"[1-4] of 4 trials failed .*the code has changed since"):
        run_tuning(edited, monkeypatch, fork_server, jobs=1)
    assert not Path("tuning").exists()


def test_code_edited_during_tuning_is_not_recorded(top, config, monkeypatch, fork_server):
    """Also where an edit is taken back before the end: what is looked at then is as it was."""
    edited = with_custom_class(config, "from torch.optim import SGD as Mine\n")
    (module,) = Path("custom").glob("*.py")
    start = SharedForkServer.start

    def edits(self, name, *words):
        before = module.read_text()
        if len(self.started) == 2:
            module.write_text("from torch.optim import Adam as Mine\n")
        job = start(self, name, *words)
        if len(self.started) == 3:
            while job.status is None:
                time.sleep(0.01)
            module.write_text(before)
        return job

    with monkeypatch.context() as patch:
        patch.setattr(SharedForkServer, "start", edits)
        with pytest.raises(RunsFailedError, match=r"1 of 4 trials failed .*the code has changed since"):
            run_tuning(edited, patch, fork_server, jobs=1)
    first, _ = run_tuning(edited, monkeypatch, fork_server)
    shutil.rmtree("tuning")
    shutil.rmtree(".optlab/trials")
    assert run_tuning(edited, monkeypatch, fork_server)[0] == first


def test_equal_trial_is_trained_by_one_process(top, config, monkeypatch):
    """As where two pipelines have it: the second waits, says for whom, and takes what the first has come to."""
    settled = config.model_copy(
        update={"optimizers": {"mine": OptimizerSpec.model_validate({"class": "SGD", "lr": 0.01})}}
    )
    asked = TrialRequest.from_config(settled, "mine", 1, 4, {})
    key = asked.compute_key()
    place = top / "trials" / key / "4.json"
    files.write_atomic(place.with_name("4.task.json"), asked.model_dump_json().encode())
    monkeypatch.setattr(sys, "argv", ["trial", str(place.with_name("4.task.json")), str(place)])
    monkeypatch.setattr(locks, "LOCK_TIMEOUT_S", 0)
    monkeypatch.setattr(trial.processes, "exit_with_caller", lambda: None)
    other = FileLock(top / locks.LOCKS / f"{get_lock_name(key)}.lock", thread_local=False)
    other.acquire()
    left = top / tuning_session.TRIALS_FOLDER / "machine" / key / "checkpoint"
    left.mkdir(parents=True)
    tuning_session.remove_checkpoints(key)  # the other pipeline's tuning has ended
    assert left.exists() and Path(other.lock_file).exists()

    def end(said):
        assert said.startswith(f"waiting: trial-{key}: another process is at work on it") and not place.exists()
        other.release()

    monkeypatch.setattr(locks, "print_stderr", end)
    trial.main()
    first = place.read_bytes()
    monkeypatch.setattr(trial, "train_trial", lambda *words: pytest.fail("it was trained again"))
    trial.main()
    assert place.read_bytes() == first and TrialResult.load_if_present(place).look.step == 4
    assert not other.is_locked
    tuning_session.remove_checkpoints(key)
    assert not left.exists() and not Path(other.lock_file).exists()
    monkeypatch.setattr(repository, "is_experiment_copy", lambda: True)  # of an experiment, which has trials of its own
    assert get_lock_name(key) == f"trial-{key}-{top.name}"


def test_recorded_divergence_does_not_cover_earlier_steps(config):
    spec = config.get_optimizer("mine")
    work = TuningSession(
        config, "mine", 0, spec, {}, {}, tuning_session.ExecutorTrainer(LocalExecutor(1, False), False)
    )
    trial = Trial(0, 0, 1, {"lr": 5.0, "momentum": 0.9}, failure="diverged", target_step=14)
    work.recorded[work.compute_key(trial)] = work.make_record(trial)
    assert [work.find_result(trial, until) for until in (4, 7, 14, 28)] == [None, None, "diverged", "diverged"]
    trial.end = ValidationMetrics(step=9, loss=None, accuracy=None)
    work.recorded[work.compute_key(trial)] = work.make_record(trial)
    assert [work.find_result(trial, until) for until in (4, 7, 14, 28)] == [None, None, trial.end, trial.end]


PEEKING = """
import torch
from optlab.schema.parameters import DataConfig
from optlab import records
from optlab.data import cifar10

class Peeking(torch.optim.SGD):
    def step(self, closure=None):
        if len(self.param_groups[0]["params"]) > 2:
            sample = DataConfig(dataset="cifar10_sample", train_size=100, validation_size=20)
            cifar10.load_test_split(cifar10.Path("data/cifar10"), sample)
        return super().step(closure)
"""


def test_trial_cannot_read_test_split(top, config, monkeypatch):
    (top / "custom").mkdir()
    (top / "custom" / "peeking.py").write_text(PEEKING)
    monkeypatch.syspath_prepend(str(top / "custom"))
    peeking = config.model_copy(
        update={"optimizers": {"mine": OptimizerSpec.model_validate({"class": "peeking.Peeking"})}}
    )
    result = train_trial(TrialRequest.from_config(peeking, "mine", 1, 14, {}), top / "trial")
    assert (result.look, result.ending) == (None, "failed")
    with monkeypatch.context() as patch:
        patch.setattr(cifar10, "forbid_test_split", lambda reason: None)
        patch.setattr(cifar10, "_forbidden_reason", "")
        assert train_trial(TrialRequest.from_config(peeking, "mine", 1, 14, {}), top / "other").look is not None


def test_training_cannot_read_test_split(fresh):
    assert fresh.run_stage("download").returncode == 0
    (fresh.top / "custom" / "peeking.py").write_text(PEEKING)
    fresh.edit("params.yaml", "sgd: {class: SGD, lr: 0.01}", "sgd: {class: peeking.Peeking, lr: 0.01}")
    result = fresh.run_stage("train", "sgd", "0")
    assert result.returncode == 1
    assert "the test split was asked for, and a training must not see it" in result.stderr
    assert not (fresh.top / "models" / "sgd-0.safetensors").exists()


def test_pipeline_with_range_is_tuned_once(fresh):
    """Tuned by plain `dvc repro`, then up to date; another range of the same optimizer alone is tuned again."""
    fresh.edit("params.yaml", "sgd: {class: SGD, lr: 0.01}", "sgd: {class: SGD, lr: {log: [0.001, 1.0]}}")
    result = fresh.repro()
    assert result.returncode == 0, result.stderr
    assert "sgd-0: 5 trials to step 4, 7, 14: at most" in result.stdout
    assert "is the best, validation accuracy" in result.stdout
    assert re.search(r"sgd +1 +completed .* 4 trials\n", result.stdout)
    assert {"tune@sgd-0", "tune@adam-0"} < set(lock_of(fresh))
    assert "up to date" in fresh.repro().stdout
    found = json.loads((fresh.top / "tuning" / "sgd-0" / "choice.json").read_text())
    trained = json.loads((fresh.top / "runs" / "sgd-0" / "train.json").read_text())
    assert dict(trained["hyperparameters"])["lr"] == str(found["entry"].get("lr", 0.001))
    (fresh.top / "custom" / "unused.py").write_text("x = 1\n")
    result = fresh.run_forked("optlab", "repro")
    assert result.returncode == 0, result.stderr
    assert "known already" in result.stdout and "epoch" not in result.stdout  # nothing is trained again


def read_mlflow_runs(project):
    """The runs that MLflow has, summaries and trials among them, their figures but the speeds, which are in no record,
    and the run whose model is the champion. The record has the shortest decimal of each float32.
    """
    with contextlib.closing(sqlite3.connect(project.top / "mlflow.db")) as database:
        figures = database.execute(
            "SELECT runs.name, runs.status, tags.value, metrics.key, metrics.step, metrics.value FROM runs"
            " LEFT JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'summary'"
            " LEFT JOIN metrics ON metrics.run_uuid = runs.run_uuid AND metrics.key != 'training/images_per_second'"
        ).fetchall()
        champions = database.execute(
            "SELECT runs.name FROM registered_model_aliases JOIN model_versions USING (name, version)"
            " JOIN runs ON runs.run_uuid = model_versions.run_id WHERE alias = 'champion'"
        ).fetchall()
    rounded = [(*words, value if value is None else float(np.float32(value))) for *words, value in figures]
    return sorted(rounded, key=str), champions


def test_study_pipeline_is_released_reproduced_synced_and_compared(fresh):
    """With a tuning, whose trials come out again."""
    study = fresh.top / "studies" / "small"
    study.mkdir(parents=True)
    shutil.copy(TOP / "studies" / "tuned" / "dvc.yaml", study)
    (study / "params.yaml").write_text((fresh.top / "params.yaml").read_text())
    fresh.edit("studies/small/params.yaml", "sgd: {class: SGD, lr: 0.01}", "sgd: {class: SGD, lr: {log: [0.001, 1.0]}}")
    assert fresh.run("git", "add", "-A").returncode == 0
    assert fresh.run("git", "commit", "-qm", "study").returncode == 0
    result = fresh.run_forked("optlab", "repro", folder="studies/small")
    assert result.returncode == 0, result.stderr
    commit(fresh, "the download's dvc.lock and .gitignore")
    here = ["--pipeline", "studies/small"]
    result = fresh.run_forked("optlab", "release", "v1", *here)
    assert result.returncode == 0, result.stderr
    assert "2 of 2 runs marked in MLflow" in result.stdout
    had = read_mlflow_runs(fresh)
    assert {"adam", "adam-0", "sgd", "sgd-0", "sgd 0"} <= {name for name, *_ in had[0]} and len(had[1]) == 1
    result = fresh.run_forked("optlab", "reproduce", "v1", "sgd-0", "--tuning", *here)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "sgd-0       identical         4/4 outputs" in result.stdout
    assert "tune@sgd-0  identical         2/2 outputs" in result.stdout
    result = fresh.run_forked("optlab", "sync", "--from", "v1", folder="studies/small")
    assert result.returncode == 0, result.stderr
    assert re.search("^sgd-0: MLflow has it already, as run [0-9a-f]{32}$", result.stdout, re.MULTILINE)
    result = fresh.run_forked("optlab", "compare", "v1", *here)
    assert result.returncode == 0 and result.stdout.count("the same weights") == 2, result.stderr
    other = fresh.clone(fresh.top / "other", cached=True)
    for command in (["sync", "--from", "v1"], ["show"]):
        result = other.run_forked("optlab", *command, folder="studies/small")
        assert result.returncode == 0, result.stderr
    assert read_mlflow_runs(other) == had
    Image.new("RGB", (32, 32), "navy").save(study / "blue.png")
    # At the top nothing was compared.
    result = fresh.run_forked("optlab", "predict", "blue.png", folder="studies/small")
    assert result.returncode == 0 and result.stdout.startswith("blue.png  "), result.stderr
    result = fresh.run_forked("optlab", "release", "v2", "--pipeline", "studies")
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        1, "error: studies: no pipeline of this repository: name the folder of one, such as studies/optimizers"
    )  # fmt: skip
