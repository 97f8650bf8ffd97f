"""What `optlab repro` says of recorded runs, and when it counts them; DVC, the executor and the display are fakes."""

from types import SimpleNamespace

from optlab.orchestration import repro
from optlab.orchestration.repro import RunScheduler
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
