"""What MLflow refuses of a run, which must not lose the rest of it."""

import json
from pathlib import Path

import pytest
from events import begun
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from optlab.cli import app
from optlab.tracking import mlflow_store, mlflow_writer, uploader
from optlab.tracking.event_log import EventLog


def upload_log(log):
    """The run in MLflow, and the client."""
    assert uploader.push_pending()
    client = mlflow_store.connect()
    (run,) = client.search_runs([mlflow_store.get_or_create_experiment(client, "optlab")])
    return client, run


def read_whole_values(client, run):
    """What is among the artifacts because MLflow does not take it, or not whole."""
    found = {}
    for each in client.list_artifacts(run.info.run_id, "whole"):
        found |= json.loads(Path(client.download_artifacts(run.info.run_id, each.path)).read_text())
    return found


def test_rejected_name_does_not_lose_other_data(top, capsys):
    """A parameter's, a tag's and a metric's; today's and those of a batch that begins with a good one."""
    log = EventLog.create("adam-0")
    log.append("start", time=1000, name="adam", experiment="optlab", params={"lr": "0.1", "k+(1)": "7", "beta": "2"},
               tags={"optlab.run": "adam-0", "what?": "is it"},
               dataset={"name": "x", "digest": "0" * 99, "source": "s"})  # fmt: skip
    log.log_metrics([("step/loss", 2.5, 1001, step) for step in range(5)] + [("50 %", 1.0, 1001, 0)])
    log.append("tags", tags={"weights.sha256": "abc", "no!": "x" * 9000})
    log.append("end", status="completed", time=2000)
    client, run = upload_log(log)
    assert run.data.params == {"lr": "0.1", "beta": "2"}
    assert (run.info.status, run.info.end_time, run.data.tags["status"]) == ("FINISHED", 2000, "completed")
    assert (run.data.tags["optlab.run"], run.data.tags["weights.sha256"]) == ("adam-0", "abc")
    assert len(client.get_metric_history(run.info.run_id, "step/loss")) == 5
    assert read_whole_values(client, run) == {"k+(1)": "7", "what?": "is it", "no!": "x" * 9000}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "refuses the tag 'what?', the param 'k+(1)', the dataset of " in said[0]
    assert "refuses the metric '50 %' of " in said[1] and "refuses the tag 'no!' of " in said[2]
    begun("sgd-0")
    synced = CliRunner().invoke(app, ["sync"])
    but = f"everything but what it refuses, which is in .optlab/event_logs, of {log.folder.name}: 1 run had"
    assert synced.exit_code == 0 and but in synced.output


def test_truncated_value_is_marked_and_kept_as_artifact(top):
    long = "".join(map(str, range(3000)))
    log = EventLog.create("adam-0")
    for _ in range(2):  # the second as after a kill, before it was noted that the first was there
        log.append("start", time=1000, name="n" * 300, experiment="optlab", 
                   params={"groups": long, "fits": "x" * 6000},
                   tags={"optlab.run": "adam-0", "note": long, "fits": "y" * 8000}, dataset=None)  # fmt: skip
    client, run = upload_log(log)
    mark = " … (cut: the whole value is among the artifacts, in whole/)"
    for value, size in ((run.data.params["groups"], 6000), (run.data.tags["note"], 8000)):
        assert len(value) == size and value.endswith(mark) and long.startswith(value.removesuffix(mark))
    assert (run.data.params["fits"], run.data.tags["fits"]) == ("x" * 6000, "y" * 8000)
    assert read_whole_values(client, run) == {"groups": long, "note": long}
    assert uploader.list_refused_logs() == []


def test_deleted_run_is_rejected_with_one_call(top, capsys, monkeypatch):
    """Not each of its metrics alone."""
    log = begun()
    client, run = upload_log(log)
    client.delete_run(run.info.run_id)
    calls = []
    log_batch = type(client).log_batch
    monkeypatch.setattr(type(client), "log_batch", lambda *a, **k: calls.append(1) or log_batch(*a, **k))
    log.log_metrics([("step/loss", 2.5, 1001, step) for step in range(64)])
    assert uploader.push_pending()
    assert len(calls) == 1 and "refuses the metrics of " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (RuntimeError("can't start new thread"), False),
        (RuntimeError("cannot schedule new futures after interpreter shutdown"), False),
        (BlockingIOError(11, "Resource temporarily unavailable"), False),
        (MemoryError(), False),
        (FileNotFoundError(2, "mlruns"), False),  # where artifacts go
        (type("Answer", (ValueError, OSError), {})("no JSON"), False),  # of a proxy, as requests has it
        (MlflowException("a server's own"), False),
        (ValueError("altered"), True),
        (KeyError("name"), True),
    ],
    ids=str,
)
def test_permanent_errors_exclude_machine_and_server_failures(error, final):
    assert mlflow_writer.is_permanent(error) == final


def test_event_is_kept_if_thread_start_fails(top, monkeypatch, capsys):
    log = begun()
    _, run = upload_log(log)
    Path("kept").touch()
    log.log_artifact(Path("kept"))

    def fail(*arguments):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_artifact", fail)
        assert not uploader.push_pending()
    client, run = upload_log(log)
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["kept"]
    assert uploader.list_refused_logs() == []
