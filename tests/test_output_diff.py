"""What is said about two runs, from records written by hand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from optlab.analysis import environment_diff
from optlab.records import Environment, RunFiles, TuningFiles
from optlab.reproduce import output_diff
from optlab.system.files import compute_content_md5, compute_md5
from optlab.tracking import mlflow_store

CONDITIONS = {"python": "3.11", "cpu_capability": "AVX2", "packages": {"torch": "1"}, "variables": {"MKL_CBWR": None}}


def epoch(train_loss, validation_loss):
    return {"epoch": 1, "train_loss": train_loss, "running_loss": 4.0, "validation_loss": validation_loss,
            "validation_accuracy": 0.5, "lr": 0.1}  # fmt: skip


TRAINED = {
    "status": "completed", "epochs": 1, "train_loss": 2.0, "validation_loss": 1.0, "validation_accuracy": 0.5,
    "weights_sha256": "0", "history": [epoch(2.0, 1.0)], "step_losses": [[2.5, 1.5]],
}  # fmt: skip
TESTED = {"status": "completed", "test_loss": 1.0, "test_accuracy": 0.5}
WEIGHTS = {"a": np.ones((2, 2), np.float32), "b": np.float32([3, 4])}


class Recorded:
    """A revision whose files are those of a dictionary."""

    def __init__(self, files, weights=None, searches=None):
        self.files, self.weights, self.searches = files, weights, searches or {}

    def read(self, path):
        return json.dumps(self.files[path.name]).encode() if path.name in self.files else None

    def list_outs(self, stage):
        return self.searches.get(stage, [])

    def fetch_output(self, path, outs):
        return self.weights


def compare_run(tmp_path, trained=TRAINED, tested=TESTED, weights=WEIGHTS, recorded_weights=WEIGHTS, flip=False,
                conditions=CONDITIONS, trials=(), unlisted=""):  # fmt: skip
    """The verdict on a run that wrote these, where TRAINED, TESTED and `recorded_weights` were recorded.

    The search had no trials, the commit has `trials`, and dvc.lock does not have the file `unlisted`.
    """
    files = RunFiles(tmp_path, "adam", 0)
    files.training.parent.mkdir(parents=True)
    files.weights.parent.mkdir()
    for path, value in ((files.training, trained), (files.test, tested), (files.environment, CONDITIONS)):
        path.write_text(json.dumps(value))
    safetensors.numpy.save_file(weights, files.weights)
    before = tmp_path / "before"
    before.mkdir()
    safetensors.numpy.save_file(recorded_weights, before / files.weights.name)
    for path, value in ((files.training, TRAINED), (files.test, TESTED)):
        (before / path.name).write_text(json.dumps(value))
    digests = {name.name: compute_md5(name) for name in before.iterdir()}
    if flip:
        digests[files.weights.name] = digests[files.weights.name][::-1]
    outs = [
        {"path": str(path.relative_to(tmp_path)), "md5": digests[path.name]}
        for path in (files.weights, files.training, files.test)
        if path.name != unlisted
    ]
    searched = {"path": "tuning/adam-0/trials.json", "md5": compute_content_md5(b"[]")}
    revision = Recorded(
        {"train.json": TRAINED, "test.json": TESTED, "conditions.json": conditions, "trials.json": trials},
        (before / files.weights.name).read_bytes(),
        {"tune@adam-0": [searched]},
    )
    return output_diff.compare_outputs(revision, tmp_path, RunFiles(Path(), "adam", 0), outs)


def changed_train_record(**values):
    return TRAINED | values


def test_output_diff_of_equal_files_is_identical(tmp_path):
    result = compare_run(tmp_path)
    assert (result.verdict, result.first_difference, result.conditions) == ("identical", None, {})


def test_field_that_older_records_have_not_is_no_difference(tmp_path):
    result = compare_run(tmp_path, tested=TESTED | {"class_accuracy": []})
    assert (result.verdict, result.reason[-14:]) == ("identical", "class_accuracy")


@pytest.mark.parametrize(
    "written",
    [
        {"tested": TESTED | {"class_accuracy": [], "test_loss": 1.5}},
        {"tested": {"status": "completed"}},
        {"flip": True},
    ],
)
def test_changed_value_is_a_difference_whatever_was_added(tmp_path, written):
    assert compare_run(tmp_path, **written).verdict == "different"


@pytest.mark.parametrize(
    ("commit", "reason"),
    [
        ({"unlisted": "train.json"}, "runs/adam-0/train.json is in the commit, and dvc.lock has no digest of it"),
        ({"unlisted": "test.json"}, "runs/adam-0/test.json is in the commit, and dvc.lock has no digest of it"),
        ({"trials": [1]}, "tuning/adam-0/trials.json in the commit is not the file whose digest is in dvc.lock"),
    ],
)
def test_commit_with_other_files_than_lock_is_different(tmp_path, commit, reason):
    """Though all that was written is as dvc.lock has it."""
    result = compare_run(tmp_path, **commit)
    assert (result.verdict, result.reason) == ("different", reason)
    assert all(output.is_identical for output in result.outputs)


@pytest.mark.parametrize(("digest", "differing"), [("1", ["conditions"]), ("0", []), (None, [])])
def test_conditions_of_another_training_are_not_recorded(tmp_path, digest, differing):
    """Older records have no digest."""
    assert list(compare_run(tmp_path, conditions=CONDITIONS | {"weights_sha256": digest}).conditions) == differing


def test_output_diff_of_rounding_is_within_tolerance(tmp_path):
    result = compare_run(
        tmp_path,
        changed_train_record(step_losses=[[2.5, 1.50001]], history=[epoch(2.001, 1.0)]),
        weights={"a": WEIGHTS["a"], "b": np.float32([3, 4.5])},
    )
    assert result.verdict == "within tolerance"
    assert result.first_difference == (1, 1)
    assert result.gaps["step_loss"].absolute == pytest.approx(0.00001)
    assert result.gaps["train_loss"].relative == pytest.approx(0.0005)
    assert result.gaps["weights"].absolute == 0.5
    assert result.gaps["weights"].relative == pytest.approx(0.1)  # ‖(0, 0.5)‖ / ‖(3, 4)‖
    assert result.gaps["test_accuracy"].absolute == 0


ROUNDED = changed_train_record(step_losses=[[2.5, 1.50001]])
FAR = {
    "first loss": {"trained": changed_train_record(step_losses=[[2.5, 1.5001]])},
    "loss": {"trained": ROUNDED | {"history": [epoch(2.03, 1.0)]}},
    "validation": {"trained": ROUNDED | {"history": [epoch(2.0, 1.2)]}},
    "accuracy": {"trained": ROUNDED, "tested": TESTED | {"test_loss": 1.0, "test_accuracy": 0.53}},
    "test loss": {"trained": ROUNDED, "tested": TESTED | {"test_loss": 1.1, "test_accuracy": 0.5}},
    "no test loss": {"trained": ROUNDED, "tested": TESTED | {"test_loss": None, "test_accuracy": None}},
    "no loss": {"trained": changed_train_record(step_losses=[[2.5, None]])},
    "status": {"trained": ROUNDED | {"status": "diverged"}},
    "fewer steps": {"trained": changed_train_record(step_losses=[[2.5]])},
    "more epochs": {"trained": changed_train_record(step_losses=[[2.5, 1.5], [1.0]])},
    "only the digest of the weights": {"flip": True},
    "only the weights": {"weights": {"a": WEIGHTS["a"] * 1.0001, "b": WEIGHTS["b"]}},
}


@pytest.mark.parametrize("values", FAR.values(), ids=FAR)
def test_output_diff_beyond_rounding_is_different(tmp_path, values):
    assert compare_run(tmp_path, **values).verdict == "different"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([[2.0, 1.5], [1.0, None]], [[2.0, 1.5], [1.0, None]], None),
        ([[2.0, 1.5], [1.0, None]], [[2.0, 1.5], [1.25, None]], (2, 2)),
        ([[2.0, 1.5]], [[2.0]], (1, 1)),
        ([[2.0, 1.5]], [[2.0, 1.5], [1.0]], (2, 2)),
        ([[2.0, None]], [[2.0, 1.5]], (1, 1)),
    ],
)
def test_first_difference_names_epoch_and_step(before, after, expected):
    assert output_diff.find_first_difference(before, after) == expected


def test_environment_diff_lists_likeliest_cause_first():
    before = Environment(**CONDITIONS)
    here = Environment(python="3.12", cpu_capability="AVX512", packages={"torch": "2"}, variables={"MKL_CBWR": "AVX2"},
                      weights_sha256="1")  # fmt: skip
    found = environment_diff.diff_environments(before, here)
    assert list(found) == ["variables.MKL_CBWR", "cpu_capability", "packages.torch", "python"]
    assert found["packages.torch"] == ("1", "2")
    assert environment_diff.diff_environments(before, before) == {}
    assert environment_diff.diff_environments(None, before) == {"conditions": ("not recorded", "recorded")}


def test_infinite_max_error_is_json_string():
    gaps = {"metrics": output_diff.MaxDifference(float("inf"), float("inf"))}
    result = output_diff.Reproduction("adam-0", "different", [], gaps=gaps)
    text = output_diff.format_json(SimpleNamespace(name="v1", commit="0" * 40), [result])
    assert json.loads(text, parse_constant=pytest.fail)["runs"][0]["gaps"]["metrics"]["absolute"] == "inf"


def test_infinite_max_error_is_nan_in_mlflow(top):
    """Not the largest float, which passes for a measured difference."""
    gaps = {"weights": output_diff.MaxDifference(0.5, 0.5), "loss": output_diff.MaxDifference(np.inf, np.inf)}
    result = output_diff.Reproduction("adam-0", "different", [], gaps=gaps)
    output_diff.log_to_mlflow(SimpleNamespace(name="v1", commit="0" * 40, folder=Path()), result, None)
    client = mlflow_store.connect()
    experiment = mlflow_store.get_or_create_experiment(client, output_diff.MLFLOW_EXPERIMENT)
    (run,) = client.search_runs([experiment])
    assert run.data.metrics["difference/weights"] == 0.5 and math.isnan(run.data.metrics["difference/loss"])


TRIAL = {
    "study": 0, "index": None, "seed": 5, "values": {"lr": 0.1}, "beyond": [], "status": "completed",
    "looks": [{"step": 4, "loss": 1.5, "accuracy": 0.5}], "key": "before",
}  # fmt: skip
TRIALS = [TRIAL, TRIAL | {"index": 0}, TRIAL | {"index": 1}]


@pytest.mark.parametrize(
    ("trials", "sensitivity", "choice", "verdict", "reason"),
    [
        (TRIALS, [TRIAL], "old", "identical", "every trial and the choice are the recorded ones"),
        ([each | {"key": "now"} for each in TRIALS], [TRIAL], "old", "identical", "every trial and the choice are the "
         "recorded ones; keys of trials differ, by code or package versions"),
        ([each | {"key": "now"} for each in TRIALS], [TRIAL], "new", "different", "but the choice differs"),
        ([TRIAL, *(each | {"seed": 6} for each in TRIALS[1:])], [TRIAL], "old", "different", "2 of 4 trials differ: "
         "0, 1"),
        (TRIALS, [TRIAL | {"index": 3, "seed": 6}], "old", "different", "1 of 4 trials differ: 3"),
        (TRIALS, [], "old", "different", "4 trials are recorded, and 3 of them repeated"),
    ],
)  # fmt: skip
def test_trials_are_compared_without_their_keys(tmp_path, trials, sensitivity, choice, verdict, reason):
    recorded = {"trials": TRIALS, "sensitivity": [TRIAL]}
    revision = Recorded({"trials.json": recorded})
    revision.folder = Path()
    files = TuningFiles(Path(), "adam", 0)

    def digest(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        return {"path": path.as_posix(), "md5": compute_md5(tmp_path / path)}

    outs = [digest(files.trials, json.dumps(recorded)), digest(files.choice, "old")]
    digest(files.trials, json.dumps({"trials": trials, "sensitivity": sensitivity}))
    digest(files.choice, choice)
    result = output_diff.compare_tuning(revision, tmp_path, files, outs)
    assert (result.run, result.verdict) == ("tune@adam-0", verdict) and reason in result.reason
    assert [each.is_identical for each in result.outputs] == [
        trials is TRIALS and sensitivity == [TRIAL],
        choice == "old",
    ]
