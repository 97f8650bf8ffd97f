"""Metrics against cases worked out by hand and against plain Python."""

import csv
import math
import random

import pytest
import torch

from optlab.analysis import metrics
from optlab.data import cifar10
from optlab.schema.parameters import CLASS_NAMES
from optlab.training import loop


def logits_of(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log().float()


def probability_row(winner, confidence):
    """Ten probabilities, the winner's as given, the rest shared evenly."""
    return [confidence if index == winner else (1 - confidence) / 9 for index in range(10)]


@pytest.fixture
def random_predictions():
    """300 random predictions, sharp and flat ones, as plain lists."""
    generator = random.Random(0)
    logits = [[generator.gauss(0, 1) * generator.choice([0.1, 1, 3]) for _ in range(10)] for _ in range(300)]
    labels = [generator.randrange(10) for _ in range(300)]
    # Half of them right, so that confidence and accuracy both vary.
    for index in range(0, 300, 2):
        labels[index] = max(range(10), key=lambda column: logits[index][column])
    return logits, labels


def plain_softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def plain_metrics(logits, labels):
    """The same figures from their definitions, one image at a time."""
    loss, confusion, bins = 0.0, [[0] * 10 for _ in range(10)], [[] for _ in range(15)]
    for values, label in zip(logits, labels, strict=True):
        probabilities = plain_softmax(values)
        confidence = max(probabilities)
        predicted = probabilities.index(confidence)
        loss -= math.log(probabilities[label]) / len(labels)
        confusion[label][predicted] += 1
        bins[math.ceil(confidence * 15) - 1].append((predicted == label, confidence))
    gaps = []
    for each in filter(None, bins):
        accuracy = sum(hit for hit, _ in each) / len(each)
        confidence = sum(sure for _, sure in each) / len(each)
        gaps.append(len(each) / len(labels) * abs(accuracy - confidence))
    return loss, confusion, sum(gaps)


def test_metrics_equal_plain_python(random_predictions):
    logits, labels = random_predictions
    loss, confusion, gap = plain_metrics(logits, labels)
    hits = [max(range(10), key=values.__getitem__) == label for values, label in zip(logits, labels, strict=True)]
    found = metrics.compute_metrics("completed", torch.tensor(logits), torch.tensor(labels))
    assert found.test_loss == pytest.approx(loss, rel=1e-6)
    assert found.confusion == confusion
    assert found.test_accuracy == pytest.approx(sum(confusion[each][each] for each in range(10)) / 300)
    assert found.expected_calibration_error == pytest.approx(gap, abs=1e-6)
    assert found.correct_mask.tolist() == hits
    assert found.class_accuracy == [
        (name, pytest.approx(confusion[each][each] / sum(confusion[each]))) for each, name in enumerate(CLASS_NAMES)
    ]


def test_metrics_equal_hand_computed_values():
    """Three airplanes, one of them called an automobile, and a bird called a bird."""
    logits = logits_of(
        [probability_row(0, 0.9), probability_row(0, 0.8), probability_row(1, 0.7), probability_row(2, 0.6)]
    )
    found = metrics.compute_metrics("completed", logits, torch.tensor([0, 0, 0, 2]))
    assert found.test_accuracy == 0.75
    assert found.correct == ["0A=="] and found.correct_mask.tolist() == [True, True, False, True]
    wrong = (1 - 0.7) / 9
    expected = -(math.log(0.9) + math.log(0.8) + math.log(wrong) + math.log(0.6)) / 4
    assert found.test_loss == pytest.approx(expected, rel=1e-6)
    assert found.class_accuracy[:3] == [("airplane", pytest.approx(2 / 3)), ("automobile", 0.0), ("bird", 1.0)]
    # Each is alone in its bin of 1/15: the gaps are 1-0.9, 1-0.8, 0.7 and 1-0.6.
    assert found.expected_calibration_error == pytest.approx((0.1 + 0.2 + 0.7 + 0.4) / 4, abs=1e-6)


class LeftBrightness(torch.nn.Module):
    """Class 0 where the left half is bright, else class 1."""

    def forward(self, images):
        logits = torch.zeros(len(images), 10)
        logits[:, 0] = images[..., :16].mean((1, 2, 3))
        logits[:, 1] = 0.6
        return logits


def test_mirrored_accuracy_is_of_mean_logits_of_image_and_mirror_image():
    """The halves' brightness: 1 and 0, labelled 0; 0.2 and 0.7, labelled 1. Together 0.5 and 0.45, both class 1."""
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    images[0, :, :16] = 255
    images[1, :, :16], images[1, :, 16:] = 51, 178
    split = cifar10.Split(images, torch.tensor([0, 1]))
    logits, mirrored = (loop.predict(LeftBrightness(), each) for each in (split, split.mirror()))
    plain = metrics.compute_metrics("completed", logits, split.labels)
    assert (plain.test_accuracy, plain.mirrored_test_accuracy) == (1.0, None)
    both = metrics.compute_metrics("completed", logits, split.labels, mirrored_logits=mirrored)
    assert both == plain.model_copy(update={"mirrored_test_accuracy": 0.5})
    assert metrics.compute_metrics("completed", mirrored, split.labels).test_accuracy == 0.0
    infinite = torch.full_like(mirrored, math.inf)
    assert metrics.compute_metrics("completed", logits, split.labels, mirrored_logits=infinite) == plain


def test_confusion_matrix_rows_are_actual_classes():
    matrix = metrics.compute_confusion_matrix(torch.tensor([3, 3, 5]), torch.tensor([1, 1, 5]))
    assert matrix.dtype == torch.int64 and matrix.shape == (10, 10)
    assert matrix[1, 3] == 2 and matrix[5, 5] == 1 and matrix.sum() == 3


CALIBRATION = {
    # Gaps of one bin are added before their size is taken: a hit and a miss at 0.5 cancel out.
    "right as often as sure": ([(0.5, True), (0.5, False)], 0.0),
    "sure and right": ([(1.0, True)] * 3, 0.0),
    "sure and wrong": ([(1.0, False)] * 3, 1.0),
    "different bins do not cancel": ([(0.9, False), (0.1 + 1e-9, True)], (0.9 + 0.9) / 2),
    # 9/15 closes the bin from 8/15: were it in the next one, the two gaps would add up to 0.4 and 0.45.
    "an edge belongs to the bin below": ([(9 / 15, True), (0.55, False)], abs(0.4 - 0.55) / 2),
}


@pytest.mark.parametrize(("cases", "expected"), CALIBRATION.values(), ids=CALIBRATION)
def test_calibration_error(cases, expected):
    probabilities = torch.tensor([probability_row(4, confidence) for confidence, _ in cases], dtype=torch.float64)
    labels = torch.tensor([4 if hit else 5 for _, hit in cases])
    assert metrics.compute_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)


def test_class_without_images_has_zero_accuracy():
    found = metrics.compute_metrics("completed", logits_of([probability_row(0, 0.9)]), torch.tensor([0]))
    assert found.class_accuracy[9] == ("truck", 0.0)


@pytest.mark.parametrize("status", ["completed", "diverged"])
def test_non_finite_outputs_are_divergence(status):
    """One logit is enough, of a class that no label names; whatever the training ended as."""
    logits = logits_of([probability_row(0, 0.9), probability_row(1, 0.9)])
    logits[1, 7] = -math.inf
    found = metrics.compute_metrics(status, logits, torch.tensor([0, 1]))
    assert found.status == "diverged"
    assert not any(value for key, value in found if key != "status")


def test_predictions_are_written_as_csv(tmp_path):
    path = tmp_path / "runs" / "predictions.csv"
    metrics.write_predictions(
        path, logits_of([probability_row(0, 0.9), probability_row(9, 0.25)]), torch.tensor([0, 3])
    )
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"image": "0", "actual": "airplane", "predicted": "airplane", "confidence": "0.900000"},
        {"image": "1", "actual": "cat", "predicted": "truck", "confidence": "0.250000"},
    ]
    assert b"\r" not in path.read_bytes()
