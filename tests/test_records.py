"""The record on disk: what is written is what is read, older files stay readable, damage is one line."""

import json
from pathlib import Path

import pytest

from optlab import records
from optlab.records import (
    Environment,
    EpochMetrics,
    EvalRecord,
    Record,
    RunFiles,
    StudyResult,
    TrainRecord,
    TuningFiles,
    TuningResult,
    ValidationMetrics,
)
from optlab.system.errors import RecordError

TOP = Path(__file__).resolve().parents[1]
EPOCH = EpochMetrics(epoch=1, train_loss=0.1, running_loss=7.0, validation_loss=None, validation_accuracy=None, lr=0.01)
LOOKS = [ValidationMetrics(step=1, loss=0.5, accuracy=0.25), ValidationMetrics(step=2, loss=None, accuracy=None)]
LOSSES = [[0.10000000149011612, float("nan")]]
TRAINED = TrainRecord.from_training("diverged", [EPOCH], LOOKS, LOSSES, {"betas": (0.9, 0.999)}, "f" * 64)


def test_records_round_trip_through_files(tmp_path):
    tested = EvalRecord(status="completed", test_loss=1 / 3, class_accuracy=[("cat", 0.5)], confusion=[[1, 2], [3, 4]])
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


def test_run_is_trained_with_values_of_its_own_study(small_config, tmp_path):
    entry = {"class": "SGD", "lr": {"log": [0.001, 1.0]}}
    config = small_config(seeds=[3, 4, 5], optimizers={"sgd": entry}, tuning={"studies": 3})
    studies = [StudyResult(entry={"class": "SGD", "lr": lr}, trial=0) for lr in (0.1, 0.2, 0.4)]
    path = TuningFiles(tmp_path, "sgd").choice
    path.parent.mkdir(parents=True)
    TuningResult(is_tuned=True, studies=studies, modules={}).write(path)
    chosen = [records.load_chosen_config(config, tmp_path, "sgd", seed)[0] for seed in config.seeds]
    assert [each.get_optimizer("sgd").hyperparameters["lr"] for each in chosen] == [0.1, 0.2, 0.4]
