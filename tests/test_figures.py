"""The curves: one line per optimizer, in the interval that its seeds give."""

import pytest

from optlab.config.parameters import run_id
from optlab.record.contents import Evaluated, Trained, Validation
from optlab.record.runs import RunFiles
from optlab.results import comparison, curves, figures, report, statistics


def compared(config, folder, losses, accuracies=None):
    """Of records with these losses of each step and accuracies after each epoch of 7 steps, by run."""
    for name, seed in config.runs():
        files, run = RunFiles(folder, name, seed), run_id(name, seed)
        status = "diverged" if None in losses[run] else "completed"
        seen = [
            Validation(step=7 * epoch, loss=None if accuracy is None else 1.0, accuracy=accuracy)
            for epoch, accuracy in enumerate((accuracies or {}).get(run, [0.5]), start=1)
        ]
        Trained(
            status=status, epochs=1, train_loss=1.0, validation_loss=1.0, validation_accuracy=seen[-1].accuracy,
            weights_sha256="0", history=[], validations=seen, step_losses=[losses[run]],
        ).write(files.training)  # fmt: skip
        Evaluated(status=status, test_loss=1.0, test_accuracy=0.5, expected_calibration_error=0.1).write(files.test)
    return comparison.collect(config, folder)


def drawn(found):
    figure = figures.curves(found, curves.curves(found))
    return {axis.get_title(): axis for axis in figure.axes}


def test_the_mean_over_the_seeds_lies_in_its_interval(small_config, tmp_path):
    losses = {"sgd-0": [2.0, 1.0], "sgd-1": [2.2, 1.4], "adam-0": [2.3], "adam-1": [2.5]}
    axis = drawn(compared(small_config(seeds=[0, 1]), tmp_path, losses))["training loss"]
    sgd, adam = axis.lines
    epochs = [1 / 7, 2 / 7]
    assert (list(sgd.get_xdata()), list(sgd.get_ydata())) == (epochs, pytest.approx([2.1, 1.2]))
    assert (list(adam.get_xdata()), list(adam.get_ydata())) == (epochs[:1], [2.4])
    corners = axis.collections[0].get_paths()[0].vertices
    half = statistics.figure([1.0, 1.4]).half
    at_end = {round(float(y), 6) for x, y in corners if x == epochs[1]}
    assert at_end == {round(1.2 - half, 6), round(1.2 + half, 6)}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["sgd", "adam"]


def test_one_seed_has_no_band(small_config, tmp_path):
    axis = drawn(compared(small_config(), tmp_path, {"sgd-0": [2.0, 1.0], "adam-0": [2.3]}))["training loss"]
    assert len(axis.lines) == 2 and not axis.collections


def test_where_a_seed_has_diverged_there_is_no_mean(small_config, tmp_path):
    losses = {"sgd-0": [2.0, 1.0], "sgd-1": [2.2, None], "adam-0": [None], "adam-1": [None]}
    axis = drawn(compared(small_config(seeds=[0, 1]), tmp_path, losses))["training loss"]
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert lines == {"sgd": [pytest.approx(2.1)], "adam": []}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["sgd", "adam"]


def test_where_every_run_has_diverged_at_once_there_is_nothing_to_draw_and_all_is_written(small_config, tmp_path):
    """DVC misses a folder that a stage has not written."""
    nothing = {"sgd-0": [None], "adam-0": [None]}
    found = compared(small_config(), tmp_path, nothing, nothing)
    report.write(found, tmp_path)
    for name in curves.FIGURES:
        assert (tmp_path / "reports/curves" / f"{name}.csv").read_text() == "optimizer,step,epoch,mean,low,high\n"
    assert figures.png(figures.seeds({"sgd": [], "adam": []}, {}, "test_accuracy")).startswith(b"\x89PNG")


def test_where_one_seed_has_diverged_at_once_the_others_are_still_seen_to_reach_the_target(small_config, tmp_path):
    losses = {"sgd-0": [None], "sgd-1": [2.0] * 7, "adam-0": [None], "adam-1": [1.0] * 7}
    seen = {"sgd-0": [None], "sgd-1": [0.4], "adam-0": [None], "adam-1": [0.5]}
    found = compared(small_config(seeds=[0, 1]), tmp_path, losses, seen)
    (axis,) = drawn(found).values()
    assert axis.get_title() == "seeds that reached 40.00 % validation accuracy"
    assert [list(map(float, line.get_xdata())) for line in axis.lines] == [[0, 7, 7], [0, 7, 7]]


def test_a_long_training_s_loss_is_smoothed():
    """Three whole blocks, and the rest."""
    assert curves.smoothed([1.0, 3.0, 5.0, 7.0, 2.0, 2.0, 9.0], 2) == {2: 2.0, 4: 6.0, 6: 2.0, 7: 9.0}
    assert curves.smoothed([1.0, 3.0, 5.0, None], 2) == {2: 2.0}


def test_the_share_of_seeds_that_have_reached_the_target(small_config, tmp_path):
    config = small_config(seeds=[0, 1], training={"epochs": 3}, verdict={"target": 0.4})
    seen = {
        "sgd-0": [0.1, 0.2, 0.3], "sgd-1": [0.1, 0.4, 0.3], "adam-0": [0.4, 0.3, 0.5], "adam-1": [0.3, 0.3, 0.5]
    }  # fmt: skip
    axis = drawn(compared(config, tmp_path, {run: [1.0] * 21 for run in seen}, seen))[
        "seeds that reached 40.00 % validation accuracy"
    ]
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.lines}
    assert lines == {
        "adam": [(0, 0.0), (7, 0.5), (21, 1.0), (21, 1.0)],
        "sgd": [(0, 0.0), (14, 0.5), (21, 0.5)],
    }


def test_every_seed_is_a_dot_beside_its_mean():
    values = {"adam": [0.5, 0.7], "sgd": [0.4]}
    means = {name: statistics.figure(own) for name, own in values.items()}
    (axis,) = figures.seeds(values, means, "test_accuracy").axes
    dots = [sorted(map(float, line.get_xdata())) for line in axis.lines if line.get_marker() == "o"]
    assert dots == [[0.5, 0.7], [0.4]]
    means = [float(line.get_xdata()[0]) for line in axis.lines if line.get_marker() == "D"]
    assert means == pytest.approx([0.6, 0.4])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["adam", "sgd"]
