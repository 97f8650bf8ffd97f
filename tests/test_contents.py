"""The record on disk: what is written is what is read, older files stay readable, damage is one line."""

import json
from pathlib import Path

import pytest

from optlab.record import kept
from optlab.record.contents import Conditions, Contents, Epoch, Evaluated, Trained, Validation
from optlab.record.runs import RunFiles
from optlab.system.errors import RecordError

TOP = Path(__file__).resolve().parents[1]
EPOCH = Epoch(epoch=1, train_loss=0.1, running_loss=7.0, validation_loss=None, validation_accuracy=None, lr=0.01)
LOOKS = [Validation(step=1, loss=0.5, accuracy=0.25), Validation(step=2, loss=None, accuracy=None)]
LOSSES = [[0.10000000149011612, float("nan")]]
TRAINED = Trained.of("diverged", [EPOCH], LOOKS, LOSSES, {"betas": (0.9, 0.999)}, "f" * 64)


def test_what_is_written_is_what_is_read(tmp_path):
    tested = Evaluated(status="completed", test_loss=1 / 3, class_accuracy=[("cat", 0.5)], confusion=[[1, 2], [3, 4]])
    conditions = Conditions(python="3.11", packages={"torch": "2"}, variables={"MKL_CBWR": None})
    for value in (TRAINED, tested, conditions):
        value.write(tmp_path / "file.json")
        assert type(value).read(tmp_path / "file.json") == value


def test_a_loss_is_the_shortest_number_that_names_it():
    assert TRAINED.step_losses == [[0.1, None]]
    assert TRAINED.hyperparameters == [("betas", "(0.9, 0.999)")]


@pytest.mark.parametrize("run", [path.name for path in sorted((TOP / "runs").iterdir())])
def test_the_committed_record_is_read_and_written_back_to_the_same_bytes(run, tmp_path):
    files = RunFiles(TOP, run.rpartition("-")[0], int(run.rpartition("-")[2]))
    for path, kind in ((files.training, Trained), (files.test, Evaluated), (files.conditions, Conditions)):
        kind.read(path).write(tmp_path / path.name)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_record_without_hyperparameters_is_read(tmp_path):
    older = TRAINED.model_dump(mode="json")
    del older["hyperparameters"]
    (tmp_path / "train.json").write_text(json.dumps(older))
    assert Trained.read(tmp_path / "train.json").hyperparameters == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "Expecting"), ("[]", "valid dictionary"), ("{}", "status: Field required"), ("\x00", "Expecting"),
     ('{"status": "fine"}', "status: Input should be"), ('{"status": "completed", "test_loss": NaN}', "finite")],
)  # fmt: skip
def test_damage_is_one_line(tmp_path, content, reason):
    (tmp_path / "test.json").write_text(content)
    with pytest.raises(RecordError, match=rf"test\.json: damaged \(.*{reason}.*\): delete it, then run `dvc repro`"):
        Evaluated.read(tmp_path / "test.json")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(RecordError, match="No such file or directory: run `dvc repro`"):
        Evaluated.read(tmp_path / "test.json")


def test_nobody_changes_a_record():
    with pytest.raises(ValueError, match="frozen"):
        TRAINED.status = "completed"
    assert all(kind.model_config["frozen"] for kind in (Contents, Trained, Evaluated, Conditions, Epoch))


def test_conditions_come_back_with_the_weights_that_were_made_under_them(tmp_path, monkeypatch):
    """As where a learning rate is changed and changed back: DVC's run cache has the first training's outputs."""
    monkeypatch.chdir(tmp_path)
    run = RunFiles(Path(), "adam", 0)
    kept.keep(run)  # nothing there yet
    for digest in "ab":
        if digest == "b":
            kept.keep(run)  # as a training does before it writes its own
        TRAINED.model_copy(update={"weights_sha256": digest}).write(run.training)
        Conditions(cpu=f"of {digest}", weights_sha256=digest).write(run.conditions)
        kept.restore(run)
        assert Conditions.read(run.conditions).cpu == f"of {digest}"
    for digest in "aba":
        TRAINED.model_copy(update={"weights_sha256": digest}).write(run.training)
        kept.restore(run)
        assert Conditions.of_weights(run.conditions, digest).cpu == f"of {digest}"
    TRAINED.model_copy(update={"weights_sha256": "c"}).write(run.training)
    kept.restore(run)
    assert Conditions.of_weights(run.conditions, "c") is None  # it is not known, and nothing is made up
