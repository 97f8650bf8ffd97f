"""What `optlab repro` says of recorded runs, and when it counts them; DVC, the executor and the display are fakes."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from optlab.orchestration import repro
from optlab.orchestration.repro import RunScheduler
from optlab.system import processes
from optlab.system.errors import RunsFailedError


class Pipeline:
    """Stages of which some are stale; those of a broken run cannot be examined."""

    def __init__(self, names, stale=(), broken=()):
        self.names, self._stale, self._broken = names, stale, broken

    def is_stale(self, name):
        if name in self._broken:
            raise RunsFailedError(f"{name} cannot be read")
        return name in self._stale

    def prepare(self, name):
        return False  # as an equal one that DVC has kept


def test_recorded_runs_are_counted_before_others():
    shown = []
    display = SimpleNamespace(end=lambda run, reason: shown.append((run, reason)), print_line=lambda text: None)
    executor = SimpleNamespace(max_workers=1, wait_ready=lambda: None)
    pipeline = Pipeline([], stale=["train@a-0", "evaluate@b-0"], broken=["train@c-0"])
    failures = RunScheduler(pipeline, None, executor, display).run(["a-0", "b-0", "c-0", "d-0", "e-0"])
    assert failures == {"c-0": "train@c-0 cannot be read"}
    assert shown == [("d-0", None), ("e-0", None), ("a-0", None), ("b-0", None), ("c-0", "train@c-0 cannot be read")]


def test_ended_runs_are_recorded_despite_an_interruption():
    """Two end together, and the first is being recorded when it comes."""
    committed, stopped = [], []

    class Interrupted(Pipeline):
        get_command = list_files = compute_digest = lambda self, name: ("", "")

        def prepare(self, name):
            return True

        def commit(self, name):
            committed.append(name)
            if len(committed) == 1:
                raise KeyboardInterrupt

    def submit(spec):
        job = Future()
        job.name, job.status = spec.name, 0
        job.set_result(0)
        return job

    display = SimpleNamespace(print_line=lambda text: None, handle_line=print)
    executor = SimpleNamespace(
        max_workers=2, wait_ready=lambda: None, submit=submit, stop=lambda: stopped.append(list(committed))
    )
    pipeline = Interrupted([], stale=["train@a-0", "train@b-0"])
    with pytest.raises(KeyboardInterrupt):
        RunScheduler(pipeline, Path(), executor, display).run(["a-0", "b-0"])
    assert stopped == [["train@a-0"]] and committed == ["train@a-0", "train@a-0", "train@b-0"]


def test_interruption_stops_check_of_params(monkeypatch):
    stopped = []

    class Endless:
        def result(self):
            raise KeyboardInterrupt

    job = Endless()
    monkeypatch.setattr(processes, "stop", stopped.extend)
    with pytest.raises(KeyboardInterrupt):
        repro._run_check(SimpleNamespace(start=lambda *_: job), ["optlab", "check"])
    assert stopped == [job]


def test_notes_are_about_kept_runs(monkeypatch, capsys, small_config, tmp_path):
    """Not about those that are trained again anyway, nor about those whose search is repeated."""
    config = small_config(seeds=[0, 1])
    monkeypatch.setattr(repro.preflight_cache, "load_cached", lambda config: SimpleNamespace(environment="here"))
    monkeypatch.setattr(
        "optlab.analysis.environment_diff.describe_stale_runs",
        lambda config, folder, here, kept: [f"{' '.join(kept)} {here}"],
    )
    names = [f"{stage}@{run}" for stage in ("tune", "train") for run in ("sgd-0", "sgd-1", "adam-0", "adam-1")]
    pipeline = Pipeline(names, stale=["train@sgd-1", "tune@adam-0"])
    repro._warn_of_other_conditions(pipeline, config, tmp_path)
    assert capsys.readouterr().err == "note: sgd-0 adam-1 here\n"
