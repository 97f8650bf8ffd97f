"""The figures of a training as MLflow is given them."""

import math

import pytest

from optlab.records import EpochMetrics
from optlab.tracking.event_log import make_epoch_points, round_metric

CONSTANT = {"schedule.name": "constant", "schedule.warmup_epochs": "0", "optimizer.lr": "0.001"}
EPOCH = EpochMetrics(
    epoch=2, train_loss=1.11175612, running_loss=782.312345, validation_loss=None, validation_accuracy=0.6194200001,
    lr=0.001, gradients=704,
).model_dump()  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.6194200000000001, 0.6194), (1.1117561, 1.1118), (0.0177539, 0.01775), (1.23456e-5, 1.235e-5), (704, 704),
     (-0.25, -0.25), (0.0, 0.0), (math.inf, math.inf)],
)  # fmt: skip
def test_metric_is_rounded_to_four_digits(value, shown):
    assert round_metric(value) == shown


def test_nan_metric_stays_nan():
    assert math.isnan(round_metric(math.nan))


def test_epoch_metrics_section_sorts_first():
    points = {
        name: value for name, value, *_ in make_epoch_points(EPOCH | {"images_per_second": 1234.56789}, 1, CONSTANT)
    }
    assert points == {
        "epoch/train_loss": 1.1118, "epoch/running_loss": 782.3123, "epoch/validation_accuracy": 0.6194,
        "training/gradients": 704, "training/images_per_second": 1234.5679,
    }  # fmt: skip
    assert "epoch" < "step" < "test" < "training"  # MLflow sorts the sections of a run's charts


@pytest.mark.parametrize(
    "params",
    [{"schedule.name": "cosine"}, {"schedule.warmup_epochs": "0.5"}, {"optimizer.lr": "0.1"}, {"optimizer.lr": None}],
)
def test_changing_learning_rate_is_logged_as_metric(params):
    names = [name for name, *_ in make_epoch_points(EPOCH, 1, CONSTANT | params)]
    assert "training/lr" in names
