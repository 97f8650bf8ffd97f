"""What a person reads of a training."""

from dataclasses import replace

import pytest

from optlab.records import EpochMetrics
from optlab.system import processes
from optlab.tracking import callbacks
from optlab.training.loop import TrainStart

FIGURES = ("train_loss", "running_loss", "validation_loss", "validation_accuracy")
START = TrainStart("sgd-0", steps_per_epoch=7, hyperparameters={}, n_parameters=10, steps_done=0, images_done=0)
# How many of an epoch's figures there are → what is said of it.
WORDS = {
    4: "training loss 1.5000, validation loss 1.2500, validation accuracy 40.00%",
    2: "running loss 10.5",
    1: "the loss is not finite",
    0: "the loss is not finite",
}


@pytest.mark.parametrize("kind", [callbacks.ProgressBar, callbacks.ProgressLines])
@pytest.mark.parametrize("known", WORDS)
def test_progress_callbacks_report_epochs_and_divergence(capsys, kind, known):
    values = [value if index < known else None for index, value in enumerate((1.5, 10.5, 1.25, 0.4))]
    watching = kind(epochs=3, images_per_epoch=400)
    watching.on_start(START)
    watching.on_step(1, 0, float("nan"), 64)
    watching.on_epoch(EpochMetrics(epoch=1, lr=0.1, **dict(zip(FIGURES, values, strict=True))))
    watching.on_end("diverged")
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(processes.PROGRESS_PREFIX)]
    assert said == [f"sgd-0  epoch 1/3  {WORDS[known]}", f"sgd-0  {callbacks.DIVERGED_MESSAGE}"]


def test_progress_callbacks_are_silent_for_completed_run(capsys):
    for kind in (callbacks.ProgressBar, callbacks.ProgressLines):
        watching = kind(epochs=3, images_per_epoch=400)
        watching.on_start(START)
        watching.on_end("completed")
    assert capsys.readouterr().out == ""


def test_progress_callbacks_list_parameter_assignment_before_first_step(capsys):
    start = replace(START, descriptions=["Muon: 10 numbers", "AdamW: 5 numbers"], steps_done=3)
    for kind in (callbacks.ProgressBar, callbacks.ProgressLines):
        watching = kind(epochs=3, images_per_epoch=400)
        watching.on_start(start)
        watching.on_end("completed")
        said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(processes.PROGRESS_PREFIX)]
        assert said == [
            "sgd-0  Muon: 10 numbers",
            "sgd-0  AdamW: 5 numbers",
            "sgd-0  continues after step 3, where it was interrupted",
        ]
