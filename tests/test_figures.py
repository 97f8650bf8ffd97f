"""The curves: one line per optimizer, in the interval that its seeds give."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optlab.analysis import comparison, figures, mean_ci, page_data, presentation, report
from optlab.records import EvalRecord, RunFiles, TrainRecord, ValidationMetrics
from optlab.schema.parameters import format_run_id


def collect_comparison(config, folder, losses, accuracies=None):
    """Of records with these losses of each step and accuracies after each epoch of 7 steps, by run."""
    for name, seed in config.list_runs():
        files, run = RunFiles(folder, name, seed), format_run_id(name, seed)
        status = "diverged" if None in losses[run] else "completed"
        seen = [
            ValidationMetrics(step=7 * epoch, loss=None if accuracy is None else 1.0, accuracy=accuracy)
            for epoch, accuracy in enumerate((accuracies or {}).get(run, [0.5]), start=1)
        ]
        TrainRecord(
            status=status, epochs=1, train_loss=1.0, validation_loss=1.0, validation_accuracy=seen[-1].accuracy,
            weights_sha256="0", history=[], validations=seen, step_losses=[losses[run]],
        ).write(files.training)  # fmt: skip
        EvalRecord(status=status, test_loss=1.0, test_accuracy=0.5, expected_calibration_error=0.1).write(files.test)
    return comparison.collect(config, folder)


def draw_axes(found):
    figure = figures.plot_curves(found, figures.compute_curves(found))
    return {axis.get_title(): axis for axis in figure.axes}


def test_curve_shows_mean_and_confidence_interval(small_config, tmp_path):
    losses = {"sgd-0": [2.0, 1.0], "sgd-1": [2.2, 1.4], "adam-0": [2.3], "adam-1": [2.5]}
    axis = draw_axes(collect_comparison(small_config(seeds=[0, 1]), tmp_path, losses))["training loss"]
    sgd, adam = axis.lines
    epochs = [1 / 7, 2 / 7]
    assert (list(sgd.get_xdata()), list(sgd.get_ydata())) == (epochs, pytest.approx([2.1, 1.2]))
    assert (list(adam.get_xdata()), list(adam.get_ydata())) == (epochs[:1], [2.4])
    corners = axis.collections[0].get_paths()[0].vertices
    half = mean_ci.compute_mean_ci([1.0, 1.4]).half_width
    at_end = {round(float(y), 6) for x, y in corners if x == epochs[1]}
    assert at_end == {round(1.2 - half, 6), round(1.2 + half, 6)}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["sgd", "adam"]


def test_single_seed_curve_has_no_band(small_config, tmp_path):
    axis = draw_axes(collect_comparison(small_config(), tmp_path, {"sgd-0": [2.0, 1.0], "adam-0": [2.3]}))[
        "training loss"
    ]
    assert len(axis.lines) == 2 and not axis.collections


def test_mean_curve_ends_where_seed_diverged(small_config, tmp_path):
    losses = {"sgd-0": [2.0, 1.0], "sgd-1": [2.2, None], "adam-0": [None], "adam-1": [None]}
    axis = draw_axes(collect_comparison(small_config(seeds=[0, 1]), tmp_path, losses))["training loss"]
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert lines == {"sgd": [pytest.approx(2.1)], "adam": []}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["sgd", "adam"]


def test_report_has_no_curve_without_a_mean(small_config, tmp_path):
    """One seed of each optimizer diverges before its first validation."""
    losses = {"sgd-0": [2.0] * 7, "sgd-1": [None], "adam-0": [1.0] * 7, "adam-1": [1.0, None]}
    found = collect_comparison(small_config(seeds=[0, 1]), tmp_path, losses, {"sgd-1": [None], "adam-1": [None]})
    curves = figures.compute_curves(found)
    assert [each["key"] for each in page_data.build(found, curves)["curves"]] == ["train_loss"]
    assert len(figures.render_curve_panels(found, curves)) == 1


def test_report_has_a_curve_where_there_is_a_mean(small_config, tmp_path):
    """sgd's second seed diverges before its first validation, and adam's first lacks one in between."""
    losses = {"sgd-0": [2.0] * 14, "sgd-1": [None], "adam-0": [1.0] * 14, "adam-1": [1.0] * 14}
    accuracies = {"sgd-0": [0.4, 0.5], "sgd-1": [None], "adam-0": [None, 0.7], "adam-1": [0.5, 0.6]}
    found = collect_comparison(small_config(seeds=[0, 1]), tmp_path, losses, accuracies)
    curves = figures.compute_curves(found)
    by_key = {each["key"]: each for each in page_data.build(found, curves)["curves"]}
    titles = [figures.format_metric_name(key) for key in by_key]
    assert titles == [title for title, _ in figures.render_curve_panels(found, curves) if "reached" not in title]
    adam = next(line for line in by_key["validation_accuracy"]["lines"] if line["optimizer"] == "adam")
    assert adam["steps"] == [7, 14]
    assert adam["seeds"] == [[0, [None, 0.7]], [1, [0.5, 0.6]]]
    assert adam["mean"] == [None, 0.65]  # of a step that a seed lacks there is none


def test_report_of_only_diverged_runs_is_written(small_config, tmp_path):
    """DVC misses a folder that a stage has not written."""
    nothing = {"sgd-0": [None], "adam-0": [None]}
    found = collect_comparison(small_config(), tmp_path, nothing, nothing)
    report.write(found, tmp_path)
    for name in figures.CURVE_METRICS:
        assert (tmp_path / "reports/curves" / f"{name}.csv").read_text() == "optimizer,step,epoch,mean,low,high\n"
    assert figures.render_png(
        figures.plot_seeds({"sgd": [], "adam": []}, {}, "test_accuracy", found.colours)
    ).startswith(b"\x89PNG")


def test_target_curve_ignores_diverged_seeds(small_config, tmp_path):
    losses = {"sgd-0": [None], "sgd-1": [2.0] * 7, "adam-0": [None], "adam-1": [1.0] * 7}
    seen = {"sgd-0": [None], "sgd-1": [0.4], "adam-0": [None], "adam-1": [0.5]}
    found = collect_comparison(small_config(seeds=[0, 1], training={"epochs": 2}), tmp_path, losses, seen)
    (axis,) = draw_axes(found).values()
    assert axis.get_title() == "seeds that reached 40.00 % validation accuracy"
    assert [list(map(float, line.get_xdata())) for line in axis.lines] == [[0, 7, 14], [0, 7, 14]]


def test_target_reached_only_at_the_end_has_no_curve(small_config, tmp_path):
    seen = {"sgd-0": [0.4], "adam-0": [0.5]}
    found = collect_comparison(small_config(), tmp_path, {run: [1.0] * 7 for run in seen}, seen)
    assert found.target and not any("reached" in title for title in draw_axes(found))
    data = page_data.build(found, figures.compute_curves(found))
    assert data["target"] == {"accuracy": 0.4, "lines": []}  # the curves of the accuracy have a line at it


def test_long_loss_curve_is_smoothed():
    """Three whole blocks, and the rest."""
    assert figures.compute_block_means([1.0, 3.0, 5.0, 7.0, 2.0, 2.0, 9.0], 2) == {2: 2.0, 4: 6.0, 6: 2.0, 7: 9.0}
    assert figures.compute_block_means([1.0, 3.0, 5.0, None], 2) == {2: 2.0}


def test_target_curve_shows_share_of_seeds(small_config, tmp_path):
    config = small_config(seeds=[0, 1], training={"epochs": 3}, verdict={"target": 0.4})
    seen = {
        "sgd-0": [0.1, 0.2, 0.3], "sgd-1": [0.1, 0.4, 0.3], "adam-0": [0.4, 0.3, 0.5], "adam-1": [0.3, 0.3, 0.5]
    }  # fmt: skip
    axis = draw_axes(collect_comparison(config, tmp_path, {run: [1.0] * 21 for run in seen}, seen))[
        "seeds that reached 40.00 % validation accuracy"
    ]
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.lines}
    assert lines == {
        "adam": [(0, 0.0), (7, 0.5), (21, 1.0), (21, 1.0)],
        "sgd": [(0, 0.0), (14, 0.5), (21, 0.5)],
    }


def test_seed_plot_shows_each_seed_and_mean():
    values = {"adam": [0.5, 0.7], "sgd": [0.4]}
    means = {name: mean_ci.compute_mean_ci(own) for name, own in values.items()}
    (axis,) = figures.plot_seeds(values, means, "test_accuracy", presentation.assign_colours(values)).axes
    dots = [sorted(map(float, line.get_xdata())) for line in axis.lines if line.get_marker() == "o"]
    assert dots == [[0.5, 0.7], [0.4]]
    means = [float(line.get_xdata()[0]) for line in axis.lines if line.get_marker() == "D"]
    assert means == pytest.approx([0.6, 0.4])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["adam", "sgd"]


def test_figure_in_page_keeps_digits_of_ticks():
    values = {"sgd": [1.0512, 1.0598]}
    drawn = figures.plot_seeds(values, {}, "train_loss", presentation.assign_colours(values))
    ticks = re.findall(r"<text[^>]*>([\d.]+)</text>", figures.render_svg(drawn))
    assert len(ticks) == len(set(ticks)) > 2


ALL = ("radam", "adan", "mars", "shampoo", "soap", "lookahead", "adagrad")  # seven that a digest modulo 20 gave three


def test_optimizer_colours_are_unique(small_config, tmp_path):
    """Also where there are more than colours in the palette; what is added last takes nobody's."""
    for names in (ALL, (*presentation.RESERVED_COLOURS, *ALL), [f"own_{number}" for number in range(300)]):
        found = presentation.assign_colours(names)
        assert len(set(found.values())) == len(names)
        assert found.items() <= presentation.assign_colours([*names, "another", "sgd"]).items()
        assert all(colour == presentation.RESERVED_COLOURS.get(name, colour) for name, colour in found.items())
    config = small_config(optimizers={name: {"class": "SGD", "lr": 0.1} for name in ALL})
    axis = draw_axes(collect_comparison(config, tmp_path, {f"{name}-0": [2.0, 1.0] for name in ALL}))["training loss"]
    assert {line.get_label(): line.get_color() for line in axis.lines} == presentation.assign_colours(ALL)


def test_stages_and_uploader_import_no_plotting_library():
    """They run for every seed and would load it each time."""
    modules = ("analysis.metrics", "analysis.presentation", "tracking.run_metadata", "tracking.mlflow_writer")
    code = f"import sys, {', '.join(f'optlab.{name}' for name in modules)}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"matplotlib", "scipy"}.isdisjoint(result.stdout.split())


def test_challenger_keeps_study_colours(small_config, tmp_path):
    config = small_config(optimizers={name: {"class": "SGD", "lr": 0.1} for name in ALL})
    found = collect_comparison(config, tmp_path, {f"{name}-0": [1.0] for name in ALL})
    beside = dataclasses.replace(found, challenger=ALL[0])
    assert {name: beside.colours[name] for name in ALL[1:]} == presentation.assign_colours(ALL[1:])
    assert len(set(beside.colours.values())) == len(ALL)


# How colours look without red and without green cones: Machado, Oliveira and Fernandes (2009), of linear RGB.
EYES = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
OKLAB = (
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]],
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]],
)  # fmt: skip


def to_oklab(colour, eyes):
    """In Oklab (Ottosson 2020), where equal distances look equally large."""
    rgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.array(OKLAB[1]) @ np.cbrt(np.array(OKLAB[0]) @ np.clip(np.array(eyes) @ linear, 0, 1))


@pytest.mark.parametrize("eyes", EYES.values(), ids=EYES)
@pytest.mark.parametrize(
    ("count", "least"), [(len(presentation.RESERVED_COLOURS), 0.09), (len(presentation.PALETTE), 0.03)]
)
def test_colours_are_distinguishable_with_colour_blindness(eyes, count, least):
    """Of matplotlib's own ten, two are 0.007 apart for those without red cones."""
    places = [to_oklab(colour, eyes) for colour in presentation.PALETTE[:count]]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(places, 2)) > least


@pytest.mark.parametrize("template", ["bands", "optimizers"])
def test_dvc_plots_use_same_palette(template):
    """Vega's own has ten colours, and begins again with the eleventh optimizer."""
    path = Path(__file__).parents[1] / ".dvc" / "plots" / f"{template}.json"
    assert json.loads(path.read_text())["encoding"]["color"]["scale"]["range"] == list(presentation.PALETTE)
