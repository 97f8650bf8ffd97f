"""The record on disk: what is written is what is read, older files stay readable, damage is one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from optlab import records
from optlab.records import (
    Choice,
    Environment,
    EpochMetrics,
    EvalRecord,
    Record,
    RunFiles,
    TrainRecord,
    TuningFiles,
    ValidationMetrics,
)
from optlab.system.errors import RecordError

TOP = Path(__file__).resolve().parents[1]
EPOCH = EpochMetrics(epoch=1, train_loss=0.1, running_loss=7.0, validation_loss=None, validation_accuracy=None, lr=0.01)
LOOKS = [ValidationMetrics(step=1, loss=0.5, accuracy=0.25), ValidationMetrics(step=2, loss=None, accuracy=None)]
LOSSES = [[0.10000000149011612, float("nan")]]
TRAINED = TrainRecord.from_training("diverged", [EPOCH], LOOKS, LOSSES, {"betas": (0.9, 0.999)}, "f" * 64)


def test_records_round_trip_through_files(tmp_path):
    tested = EvalRecord(status="completed", test_loss=1 / 3, class_accuracy=[("cat", 0.5)], confusion=[[1, 2], [3, 4]],
                        correct=["+AA="])  # fmt: skip
    conditions = Environment(python="3.11", packages={"torch": "2"}, variables={"MKL_CBWR": None})
    for value in (TRAINED, tested, conditions):
        value.write(tmp_path / "file.json")
        assert type(value).read(tmp_path / "file.json") == value


def test_step_loss_is_shortest_decimal():
    assert TRAINED.step_losses == [[0.1, None]]
    assert TRAINED.hyperparameters == [("betas", "(0.9, 0.999)")]


@pytest.mark.parametrize("run", [path.name for path in sorted((TOP / "runs").iterdir())])
def test_committed_record_round_trips_byte_for_byte(run, tmp_path):
    files = RunFiles(TOP, run.rpartition("-")[0], int(run.rpartition("-")[2]))
    for path, kind in ((files.training, TrainRecord), (files.test, EvalRecord), (files.environment, Environment)):
        kind.read(path).write(tmp_path / path.name)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_old_record_without_hyperparameters_is_read(tmp_path):
    older = TRAINED.model_dump(mode="json")
    del older["hyperparameters"]
    (tmp_path / "train.json").write_text(json.dumps(older))
    assert TrainRecord.read(tmp_path / "train.json").hyperparameters == []


def test_mask_of_test_split_is_one_bit_per_image(tmp_path):
    mask = np.random.default_rng(0).random(10_000) < 0.6
    hits = int(mask.sum())
    tested = EvalRecord(
        status="completed", confusion=[[hits, 10_000 - hits], [0, 0]], correct=records.encode_mask(mask)
    )
    assert len("".join(tested.correct)) == 1668 and {len(line) for line in tested.correct[:-1]} == {76}
    tested.write(tmp_path / "test.json")
    found = EvalRecord.read(tmp_path / "test.json").correct_mask
    assert found.dtype == bool and np.array_equal(found, mask)


def test_record_without_mask_has_former_bytes(tmp_path):
    tested = EvalRecord(status="completed", confusion=[[1, 2], [3, 4]])
    tested.write(tmp_path / "test.json")
    assert "correct" not in (tmp_path / "test.json").read_text() and tested.correct_mask is None


def test_mirrored_accuracy_is_written_where_it_was_computed(tmp_path):
    plain = EvalRecord(status="completed", test_accuracy=0.5)
    plain.write(tmp_path / "test.json")
    former = (
        '{\n  "status": "completed",\n  "test_loss": null,\n  "test_accuracy": 0.5,\n'
        '  "expected_calibration_error": null,\n  "class_accuracy": [\n    \n  ],\n  "confusion": [\n    \n  ]\n}\n'
    )
    assert (tmp_path / "test.json").read_text() == former
    both = plain.model_copy(update={"mirrored_test_accuracy": 0.75})
    both.write(tmp_path / "test.json")
    line = '  "test_accuracy": 0.5,\n'
    assert (tmp_path / "test.json").read_text() == former.replace(line, line + '  "mirrored_test_accuracy": 0.75,\n')
    assert EvalRecord.read(tmp_path / "test.json") == both


@pytest.mark.parametrize(
    ("correct", "reason"),
    [("!AA=", "Only base64 data"), ("+AA", "Incorrect padding"), ("+A==", "has 1 bytes, and 10 images take 2"),
     ("+IA=", "has 6 correct images, and the confusion matrix 5"), ("", "has 0 bytes")],
)  # fmt: skip
def test_damaged_mask_gives_one_line_error(tmp_path, correct, reason):
    content = {"status": "completed", "confusion": [[1, 2], [3, 4]], "correct": [correct]}
    (tmp_path / "test.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=rf"test\.json: damaged \(.*{reason}.*\): delete it, then run `dvc repro`"):
        EvalRecord.read(tmp_path / "test.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "Expecting"), ("[]", "valid dictionary"), ("{}", "status: Field required"), ("\x00", "Expecting"),
     ('{"status": "fine"}', "status: Input should be"), ('{"status": "completed", "test_loss": NaN}', "finite")],
)  # fmt: skip
def test_damaged_record_gives_one_line_error(tmp_path, content, reason):
    (tmp_path / "test.json").write_text(content)
    with pytest.raises(RecordError, match=rf"test\.json: damaged \(.*{reason}.*\): delete it, then run `dvc repro`"):
        EvalRecord.read(tmp_path / "test.json")


def test_missing_record_gives_one_line_error(tmp_path):
    with pytest.raises(RecordError, match="No such file or directory: run `dvc repro`"):
        EvalRecord.read(tmp_path / "test.json")


def test_records_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        TRAINED.status = "completed"
    assert all(kind.model_config["frozen"] for kind in (Record, TrainRecord, EvalRecord, Environment, EpochMetrics))


def test_environment_is_restored_with_its_weights(tmp_path, monkeypatch):
    """As where a learning rate is changed and changed back: DVC's run cache has the first training's outputs."""
    monkeypatch.chdir(tmp_path)
    run = RunFiles(Path(), "adam", 0)
    records.keep_environment(run)  # nothing there yet
    for digest in "ab":
        if digest == "b":
            records.keep_environment(run)  # as a training does before it writes its own
        TRAINED.model_copy(update={"weights_sha256": digest}).write(run.training)
        Environment(cpu=f"of {digest}", weights_sha256=digest).write(run.environment)
        records.restore_environment(run)
        assert Environment.read(run.environment).cpu == f"of {digest}"
    for digest in "aba":
        TRAINED.model_copy(update={"weights_sha256": digest}).write(run.training)
        records.restore_environment(run)
        assert Environment.read_for_weights(run.environment, digest).cpu == f"of {digest}"
    TRAINED.model_copy(update={"weights_sha256": "c"}).write(run.training)
    records.restore_environment(run)
    assert Environment.read_for_weights(run.environment, "c") is None  # it is not known, and nothing is made up


def test_run_is_trained_with_values_of_its_own_search(small_config, tmp_path):
    entry = {"class": "SGD", "lr": {"log": [0.001, 1.0]}}
    config = small_config(seeds=[3, 4, 5], optimizers={"sgd": entry})
    for seed, lr in zip(config.seeds, (0.1, 0.2, 0.4), strict=True):
        choice = Choice(is_tuned=True, entry={"class": "SGD", "lr": lr}, trial=0, modules={})
        choice.write(TuningFiles(tmp_path, "sgd", seed).choice)
    chosen = [records.load_chosen_config(config, tmp_path, "sgd", seed)[0] for seed in config.seeds]
    assert [each.get_optimizer("sgd").hyperparameters["lr"] for each in chosen] == [0.1, 0.2, 0.4]
