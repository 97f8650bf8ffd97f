"""Messages of a node about a job, and what the driver makes of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from optlab.orchestration import ray_worker
from optlab.orchestration.executor import JobSpec
from optlab.orchestration.fork_server import Job
from optlab.orchestration.ray_executor import ResultReceiver
from optlab.orchestration.ray_worker import OutputCollector
from optlab.system.errors import BusyError, DataError, StorageError
from optlab.tracking.event_log import LOG_FOLDER, EventLog

NAME = "20260101-000000-adam-0-0123456789abcdef"


@pytest.fixture
def top(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def receiver(top):
    """Receiver for a training of adam-0, whose event log has two lines already."""
    begun = EventLog(LOG_FOLDER / NAME)
    begun.folder.mkdir(parents=True)
    begun.append("start")
    begun.log_metrics([])
    job_spec = JobSpec("adam-0", ["pipeline/train.py"], Path(), "train-adam-0", run_id="adam-0")
    made = ResultReceiver(job_spec, Job("adam-0", lambda line: False), Path())
    yield made
    made.close()


def event_lines(*events):
    return [json.dumps({"event": each}).encode() for each in events]


def test_receiver_appends_event_lines_once(receiver):
    """Lines that are sent twice, as by a second node, are written once."""
    path = LOG_FOLDER / NAME / "events.jsonl"
    before = path.read_bytes()
    assert receiver.read_inputs() == {path: before}
    receiver.handle({"log": NAME, "after": 2, "lines": event_lines("resume", "metrics")})
    receiver.handle({"log": NAME, "after": 2, "lines": event_lines("resume", "metrics", "end")})
    assert path.read_bytes() == before + b"".join(line + b"\n" for line in event_lines("resume", "metrics", "end"))
    with pytest.raises(StorageError, match="2 lines were lost on the way"):
        receiver.handle({"log": NAME, "after": 7, "lines": event_lines("end")})


def test_receiver_rejects_damaged_file(receiver, top):
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(StorageError, match=r"models/adam-0: did not arrive whole"):
        receiver.handle({"file": "models/adam-0", "sha256": digest, "content": b"weighty"})
    assert not (top / "models").exists()
    receiver.handle({"file": "models/adam-0", "sha256": digest, "content": b"weights"})
    receiver.handle({"file": "models/same", "sha256": digest, "same": "models/adam-0"})
    assert (top / "models" / "same").read_bytes() == b"weights"


def test_receiver_refuses_locked_run(receiver, monkeypatch):
    monkeypatch.setattr("optlab.system.locks.LOCK_TIMEOUT_S", 0.1)
    with pytest.raises(BusyError, match=r"optlab-adam-0: .* is at work on it in this folder"):
        ResultReceiver(receiver.job_spec, receiver.job, Path())


def test_output_collector_sends_each_change_once(top):
    """Neither the bytes of equal files, nor lines that came with the job."""
    log = EventLog(LOG_FOLDER / NAME)
    log.folder.mkdir(parents=True)
    log.append("start")
    collector = OutputCollector(top, {LOG_FOLDER / NAME / "events.jsonl": log.path.read_bytes()})
    assert collector.drain() == []
    (top / "weights").write_bytes(b"weights")
    log.log_artifact(Path("weights"), "weights")
    collector.add_line("a line")
    line, kept, grown = collector.drain()
    assert line == {"line": "a line"}
    assert (kept["content"], kept["file"]) == (b"weights", str(LOG_FOLDER / NAME / "weights"))
    assert (grown["log"], grown["after"], len(grown["lines"])) == (NAME, 1, 1)
    with log.path.open("ab") as file:
        file.write(b'{"event": "end"')  # it is still being written
    assert collector.drain() == []
    (same,) = collector.read_files((Path("weights"), Path("missing")))
    assert same["same"] == kept["file"] and "content" not in same


@pytest.mark.parametrize(
    ("sent", "here", "joined"),
    [
        ("a b", "", "a b"),
        ("a b", "a b c d", "a b c d"),  # not all had arrived
        ("a b", "a", "a b"),  # another node has resumed it meanwhile
        ("a b x", "a b c", "a b x c"),  # the driver has recorded its death
    ],
)
def test_merged_event_logs_lose_no_line(sent, here, joined):
    as_bytes = ["".join(f"{line}\n" for line in each.split()).encode() for each in (sent, here, joined)]
    assert ray_worker.merge_logs(*as_bytes[:2]) == as_bytes[2]


def test_merged_event_logs_drop_duplicate_steps():
    """The first node died after it had written more than arrived; the second started again, and died, too."""
    metrics = [
        json.dumps({"event": "metrics", "points": [["loss", 0.5, when, step]]}) for when, step in enumerate("0012")
    ]
    first, second, unsent, more = (f"{line}\n".encode() for line in metrics)
    assert ray_worker.merge_logs(first + b"end\n", first + second + unsent + more) == first + b"end\n" + unsent + more


def test_damaged_dataset_transfer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    site, content = ray_worker.WorkspaceRoot("project"), np.frombuffer(b"images", np.uint8)
    digest = hashlib.sha256(content).hexdigest()
    folder = ray_worker._write_data(site, {f"{digest} test_batch.bin": content})
    assert (folder / "test_batch.bin").read_bytes() == b"images" and folder.is_relative_to(tmp_path)
    with pytest.raises(DataError, match=r"train_batch\.bin arrived damaged"):
        ray_worker._write_data(site, {f"{digest} train_batch.bin": content[1:]})
    assert not list(tmp_path.rglob("train_batch.bin"))
