"""Metrics of one run on the test split. Stage evaluate depends on this module and on no other of this package."""

from pathlib import Path

import torch
from torch import Tensor

from optlab.records import EvalRecord, Status, encode_mask, write_csv
from optlab.schema.parameters import CLASS_NAMES, NUM_CLASSES
from optlab.training.loop import compute_loss_and_accuracy

CALIBRATION_BINS = 15


def compute_metrics(status: Status, logits: Tensor, labels: Tensor, digest: str | None = None,
                    mirrored_logits: Tensor | None = None) -> EvalRecord:  # fmt: skip
    """Compute loss, accuracy, calibration error, accuracy per class, confusion matrix, and which images are correct.

    If a logit is not finite, the status is `diverged`, and there are no metrics.

    Args:
        status: of the training.
        logits: float32, shape (n, 10).
        labels: int64, shape (n,).
        digest: SHA-256 of the weights.
        mirrored_logits: of the mirrored images, as `logits`; None without `data.mirror_test`.
    """
    if not torch.isfinite(logits).all():
        return EvalRecord(status="diverged", weights_sha256=digest)
    loss, accuracy = compute_loss_and_accuracy(logits, labels)
    predicted = logits.argmax(1)
    confusion = compute_confusion_matrix(predicted, labels)
    per_class = confusion.diagonal().double() / confusion.sum(1).clamp(min=1)
    return EvalRecord(
        status=status,
        weights_sha256=digest,
        test_loss=loss,
        test_accuracy=accuracy,
        mirrored_test_accuracy=_compute_mirrored_accuracy(logits, mirrored_logits, labels),
        expected_calibration_error=compute_calibration_error(logits.softmax(1), labels),
        class_accuracy=list(zip(CLASS_NAMES, per_class.tolist(), strict=True)),
        confusion=confusion.tolist(),
        correct=encode_mask((predicted == labels).numpy()),
    )


def _compute_mirrored_accuracy(logits: Tensor, mirrored_logits: Tensor | None, labels: Tensor) -> float | None:
    """Return the accuracy of the mean logits of images and mirror images; None if there are none or not all finite."""
    if mirrored_logits is None or not torch.isfinite(mirrored_logits).all():
        return None
    return compute_loss_and_accuracy((logits.double() + mirrored_logits.double()) / 2, labels)[1]


def compute_confusion_matrix(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return counts, int64, shape (10, 10): rows are the actual classes, columns the predicted ones."""
    return (labels * NUM_CLASSES + predicted).bincount(minlength=NUM_CLASSES**2).view(NUM_CLASSES, NUM_CLASSES)


def compute_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error over 15 bins of equal width (Guo et al., 2017, equation 3).

    Args:
        probabilities: shape (n, 10); rows sum to 1.
        labels: int64, shape (n,).
    """
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == labels).double()
    # Bins are (a, b]: a confidence of exactly b belongs to the lower one.
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float64)
    bins = torch.bucketize(confidence, edges[1:-1])
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64).index_add_(0, bins, correct - confidence)
    return float(gaps.abs().sum() / len(labels))


def write_predictions(path: Path, logits: Tensor, labels: Tensor) -> None:
    """Write a CSV file with a line per test image in file order: image, actual, predicted, confidence."""
    confidence, predicted = logits.softmax(1).max(1)
    rows = [["image", "actual", "predicted", "confidence"]]
    for index, (actual, guess, sure) in enumerate(zip(labels, predicted, confidence, strict=True)):
        rows.append([str(index), CLASS_NAMES[actual], CLASS_NAMES[guess], f"{sure:.6f}"])
    write_csv(path, rows)
