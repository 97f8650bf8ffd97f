"""What a node says of an order, and what is made of it here."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from optlab.execution import place
from optlab.execution.delivery import Delivery
from optlab.execution.jobs import Job
from optlab.execution.node import News
from optlab.execution.orders import Order
from optlab.system.errors import BusyError, DataError, StorageError
from optlab.tracking.journal import JOURNALS, Journal

NAME = "20260101-000000-adam-0-0123456789abcdef"


@pytest.fixture
def top(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def delivery(top):
    """Of a training of adam-0, whose journal has two lines already."""
    begun = Journal(JOURNALS / NAME)
    begun.folder.mkdir(parents=True)
    begun.append("start")
    begun.metrics([])
    order = Order("adam-0", ["pipeline/train.py"], Path(), "train-adam-0", run="adam-0")
    made = Delivery(order, Job("adam-0", lambda line: False, lambda name: None), Path(), None)
    yield made
    made.close()


def lines(*events):
    return [json.dumps({"event": each}).encode() for each in events]


def test_a_journal_goes_on_where_it_was(delivery):
    """What is said twice, as by a second node, is written once."""
    path = JOURNALS / NAME / "events.jsonl"
    before = path.read_bytes()
    assert delivery.inputs() == {path: before}
    delivery.take({"journal": NAME, "after": 2, "lines": lines("resume", "metrics")})
    delivery.take({"journal": NAME, "after": 2, "lines": lines("resume", "metrics", "end")})
    assert path.read_bytes() == before + b"".join(line + b"\n" for line in lines("resume", "metrics", "end"))
    with pytest.raises(StorageError, match="2 lines were lost on the way"):
        delivery.take({"journal": NAME, "after": 7, "lines": lines("end")})


def test_a_file_that_is_damaged_on_its_way_is_not_put_in_place(delivery, top):
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(StorageError, match=r"models/adam-0: did not arrive whole"):
        delivery.take({"file": "models/adam-0", "sha256": digest, "content": b"weighty"})
    assert not (top / "models").exists()
    delivery.take({"file": "models/adam-0", "sha256": digest, "content": b"weights"})
    delivery.take({"file": "models/same", "sha256": digest, "same": "models/adam-0"})
    assert (top / "models" / "same").read_bytes() == b"weights"


def test_a_run_has_one_process_at_work_on_it(delivery, monkeypatch):
    monkeypatch.setattr("optlab.system.locks.PATIENCE_S", 0.1)
    with pytest.raises(BusyError, match=r"optlab-adam-0: .* is at work on it in this folder"):
        Delivery(delivery.order, delivery.job, Path(), None)


def test_what_a_node_says_is_said_once(top):
    """The bytes of equal files, and lines that were sent along."""
    journal = Journal(JOURNALS / NAME)
    journal.folder.mkdir(parents=True)
    journal.append("start")
    news = News(top, {JOURNALS / NAME / "events.jsonl": journal.path.read_bytes()})
    assert news.gathered() == []
    (top / "weights").write_bytes(b"weights")
    journal.artifact(Path("weights"), "weights")
    news.hear("a line")
    line, kept, grown = news.gathered()
    assert line == {"line": "a line"}
    assert (kept["content"], kept["file"]) == (b"weights", str(JOURNALS / NAME / "weights"))
    assert (grown["journal"], grown["after"], len(grown["lines"])) == (NAME, 1, 1)
    with journal.path.open("ab") as file:
        file.write(b'{"event": "end"')  # it is still being written
    assert news.gathered() == []
    (same,) = news.files((Path("weights"), Path("missing")))
    assert same["same"] == kept["file"] and "content" not in same


@pytest.mark.parametrize(
    ("sent", "here", "joined"),
    [
        ("a b", "", "a b"),
        ("a b", "a b c d", "a b c d"),  # not all had arrived
        ("a b", "a", "a b"),  # it went on elsewhere meanwhile
        ("a b x", "a b c", "a b x c"),  # who asks has found it dead
    ],
)
def test_no_line_of_a_journal_is_lost(sent, here, joined):
    as_bytes = ["".join(f"{line}\n" for line in each.split()).encode() for each in (sent, here, joined)]
    assert place.joined(*as_bytes[:2]) == as_bytes[2]


def test_a_step_that_two_nodes_have_told_is_there_once():
    """The one died after it had written more than arrived; the other began anew, and died, too."""
    metrics = [
        json.dumps({"event": "metrics", "points": [["loss", 0.5, when, step]]}) for when, step in enumerate("0012")
    ]
    first, second, unsent, more = (f"{line}\n".encode() for line in metrics)
    assert place.joined(first + b"end\n", first + second + unsent + more) == first + b"end\n" + unsent + more


def test_data_that_arrives_damaged_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    site, content = place.Site("project"), np.frombuffer(b"images", np.uint8)
    digest = hashlib.sha256(content).hexdigest()
    folder = place._data(site, {f"{digest} test_batch.bin": content})
    assert (folder / "test_batch.bin").read_bytes() == b"images" and folder.is_relative_to(tmp_path)
    with pytest.raises(DataError, match=r"train_batch\.bin arrived damaged"):
        place._data(site, {f"{digest} train_batch.bin": content[1:]})
    assert not list(tmp_path.rglob("train_batch.bin"))
