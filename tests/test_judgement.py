"""What is said about two runs, from records written by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from optlab.record.contents import Conditions
from optlab.record.runs import RunFiles
from optlab.reproduce import judgement, verdicts
from optlab.results import origin

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

    def __init__(self, files, weights=None):
        self.files, self.weights = files, weights

    def read(self, path):
        return json.dumps(self.files[path.name]).encode()

    def output(self, path, outs):
        return self.weights


def judged(tmp_path, trained=TRAINED, tested=TESTED, weights=WEIGHTS, recorded_weights=WEIGHTS, flip=False):
    """The verdict on a run that wrote these, where TRAINED, TESTED and `recorded_weights` were recorded."""
    files = RunFiles(tmp_path, "adam", 0)
    files.training.parent.mkdir(parents=True)
    files.weights.parent.mkdir()
    for path, value in ((files.training, trained), (files.test, tested), (files.conditions, CONDITIONS)):
        path.write_text(json.dumps(value))
    safetensors.numpy.save_file(weights, files.weights)
    before = tmp_path / "before"
    before.mkdir()
    safetensors.numpy.save_file(recorded_weights, before / files.weights.name)
    for path, value in ((files.training, TRAINED), (files.test, TESTED)):
        (before / path.name).write_text(json.dumps(value))
    digests = {name.name: judgement.md5(name) for name in before.iterdir()}
    if flip:
        digests[files.weights.name] = digests[files.weights.name][::-1]
    outs = [
        {"path": str(path.relative_to(tmp_path)), "md5": digests[path.name]}
        for path in (files.weights, files.training, files.test)
    ]
    revision = Recorded(
        {"train.json": TRAINED, "test.json": TESTED, "conditions.json": CONDITIONS},
        (before / files.weights.name).read_bytes(),
    )
    return judgement.judge(revision, tmp_path, files, outs)


def changed(**values):
    return TRAINED | values


def test_the_same_bytes_are_identical(tmp_path):
    result = judged(tmp_path)
    assert (result.verdict, result.first_difference, result.conditions) == ("identical", None, {})


def test_rounding_is_within_tolerance(tmp_path):
    result = judged(
        tmp_path,
        changed(step_losses=[[2.5, 1.50001]], history=[epoch(2.001, 1.0)]),
        weights={"a": WEIGHTS["a"], "b": np.float32([3, 4.5])},
    )
    assert result.verdict == "within tolerance"
    assert result.first_difference == (1, 1)
    assert result.gaps["step_loss"].absolute == pytest.approx(0.00001)
    assert result.gaps["train_loss"].relative == pytest.approx(0.0005)
    assert result.gaps["weights"].absolute == 0.5
    assert result.gaps["weights"].relative == pytest.approx(0.1)  # ‖(0, 0.5)‖ / ‖(3, 4)‖
    assert result.gaps["test_accuracy"].absolute == 0


ROUNDED = changed(step_losses=[[2.5, 1.50001]])
FAR = {
    "first loss": {"trained": changed(step_losses=[[2.5, 1.5001]])},
    "loss": {"trained": ROUNDED | {"history": [epoch(2.03, 1.0)]}},
    "validation": {"trained": ROUNDED | {"history": [epoch(2.0, 1.2)]}},
    "accuracy": {"trained": ROUNDED, "tested": TESTED | {"test_loss": 1.0, "test_accuracy": 0.53}},
    "test loss": {"trained": ROUNDED, "tested": TESTED | {"test_loss": 1.1, "test_accuracy": 0.5}},
    "no test loss": {"trained": ROUNDED, "tested": TESTED | {"test_loss": None, "test_accuracy": None}},
    "no loss": {"trained": changed(step_losses=[[2.5, None]])},
    "status": {"trained": ROUNDED | {"status": "diverged"}},
    "fewer steps": {"trained": changed(step_losses=[[2.5]])},
    "more epochs": {"trained": changed(step_losses=[[2.5, 1.5], [1.0]])},
    "only the digest of the weights": {"flip": True},
    "only the weights": {"weights": {"a": WEIGHTS["a"] * 1.0001, "b": WEIGHTS["b"]}},
}


@pytest.mark.parametrize("values", FAR.values(), ids=FAR)
def test_what_rounding_does_not_explain_is_different(tmp_path, values):
    assert judged(tmp_path, **values).verdict == "different"


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
def test_the_first_difference_is_named_by_epoch_and_step(before, after, expected):
    assert judgement.first_difference(before, after) == expected


def test_the_likeliest_cause_comes_first():
    before = Conditions(**CONDITIONS)
    here = Conditions(python="3.12", cpu_capability="AVX512", packages={"torch": "2"}, variables={"MKL_CBWR": "AVX2"},
                      weights_sha256="1")  # fmt: skip
    found = origin.differences(before, here)
    assert list(found) == ["variables.MKL_CBWR", "cpu_capability", "packages.torch", "python"]
    assert found["packages.torch"] == ("1", "2")
    assert origin.differences(before, before) == {}
    assert origin.differences(None, before) == {"conditions": ("not recorded", "recorded")}


def test_a_gap_without_an_end_is_a_word_in_json():
    gaps = {"metrics": judgement.Gap(float("inf"), float("inf"))}
    result = judgement.Result("adam-0", "different", [], gaps=gaps)
    text = verdicts.as_json(SimpleNamespace(name="v1", commit="0" * 40), [result])
    assert json.loads(text, parse_constant=pytest.fail)["runs"][0]["gaps"]["metrics"]["absolute"] == "inf"
