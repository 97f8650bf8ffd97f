"""The page that one would send to a colleague: all of it in one file, and in the order in which it is read."""

import dataclasses
import re

import pytest
from test_comparison import write
from test_tuned import collected  # noqa: F401

from optlab.record.contents import Conditions, Evaluated
from optlab.record.runs import RunFiles
from optlab.results import comparison, origin, report, tables
from optlab.results.verdict import verdict


@pytest.fixture
def page(collected, tmp_path):  # noqa: F811
    """That of a record in which sgd was tuned, with whole trials."""
    report.write(collected(), tmp_path)
    return (tmp_path / "reports" / "report.html").read_text()


def test_it_begins_with_the_verdict_and_ends_with_what_it_is_made_of(page):
    parts = ['class="verdict"', "<th>optimizer</th>", "Every seed", "Curves", "Pairs: ", "Tuning", "after k trials",
             "Confusion matrices", "Parameters and conditions"]  # fmt: skip
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert page.index("<details>") < page.index("Confusion matrices")


def test_it_needs_no_network_and_no_other_file(page):
    assert "http" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert not re.search(r"url\((?!#)", page)


def test_its_figures_take_the_colour_of_the_text_and_the_width_that_there_is(page):
    drawn = re.findall(r"<svg[^>]*>", page)
    assert len(drawn) == 7  # the seeds, three curves and the target, sgd's learning rates, and the best after k trials
    assert all("viewBox" in each and "width" not in each for each in drawn)
    assert "#000000" not in page and "currentColor" in page
    targets = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', page))
    assert targets <= set(re.findall(r' id="([^"]+)"', page))


def test_the_same_record_gives_the_same_page(collected, tmp_path):  # noqa: F811
    compared = collected()
    report.write(compared, tmp_path)
    first = (tmp_path / "reports" / "report.html").read_bytes()
    report.write(compared, tmp_path)
    assert (tmp_path / "reports" / "report.html").read_bytes() == first


def test_confusion_is_the_mean_over_the_runs_that_completed(small_config, tmp_path):
    config = small_config(seeds=[0, 1, 2])
    write(tmp_path, config, [0.5] * 6, diverged=["sgd-2"])
    for seed, (right, wrong) in enumerate([(80, 20), (60, 40), (0, 100)]):
        matrix = [[0] * 10 for _ in range(10)]
        matrix[3][3], matrix[3][5] = right, wrong
        status = "diverged" if seed == 2 else "completed"
        shares = [(name, 0.1 * right) for name in "abcdefghij"]
        Evaluated(
            status=status, test_loss=1.0, test_accuracy=0.5, expected_calibration_error=0.1, confusion=matrix,
            class_accuracy=shares,
        ).write(RunFiles(tmp_path, "sgd", seed).test)  # fmt: skip
    found = dict(report._matrices(comparison.collect(config, tmp_path)))
    assert found["sgd"][3] == [0, 0, 0, 70, 0, 30, 0, 0, 0, 0]


def test_conditions_that_differ_are_counted():
    own = Conditions(cpu="AMD", packages={"torch": "2.13.0"}, weights_sha256="0")
    cells = origin.conditions([own, own, own.model_copy(update={"cpu": "Intel"}), None])
    assert ["CPU", "AMD (2 runs), Intel (1 run)"] in cells and ["torch", "2.13.0"] in cells


def test_every_parameter_is_shown_with_its_default(small_config):
    cells = dict(origin.parameters(small_config(optimizers={"mine": {"class": "SGD", "lr": {"log": [0.1, 1.0]}}})))
    assert cells["training.label_smoothing"] == "0.0" and cells["data.augment"] == "none"
    assert cells["optimizers.mine"] == "class SGD, lr log [0.1, 1.0]"


@pytest.fixture
def challenged(small_config, tmp_path):
    """A function that has sgd, with these test accuracies, challenge adam and adamw."""

    def collect(*accuracies):
        config = small_config(seeds=[0, 1, 2], optimizers={name: {"class": "SGD"} for name in ("sgd", "adam", "adamw")})
        write(tmp_path, config, [0.5] * 9, diverged=["sgd-0"] if accuracies[0] is None else [])
        others = [0.70, 0.71, 0.70, 0.50, 0.51, 0.505]
        for (name, seed), value in zip(config.runs(), [*accuracies, *others], strict=True):
            if value is not None:
                Evaluated(status="completed", test_loss=1.0, test_accuracy=value, expected_calibration_error=0.1).write(
                    RunFiles(tmp_path, name, seed).test
                )
        return dataclasses.replace(comparison.collect(config, tmp_path), challenger="sgd", notes=("Known.",))

    return collect


def test_a_challenger_is_compared_with_each_and_nobody_else(challenged):
    compared = challenged(0.60, 0.61, 0.604)
    assert list(compared.pairs) == [("sgd", "adam"), ("sgd", "adamw")]
    assert {pair.pairs for pair in compared.pairs.values()} == {2}
    said = verdict(compared)
    assert said.startswith("sgd is worse than adam (−9.87 ±") and "; better than adamw (9.97 ±" in said
    assert said.endswith("(test accuracy, n = 3 seeds, ± 95 %).")
    header, *rows = tables.matrix(compared)
    assert header == ["", "adam", "adamw"] and [row[0] for row in rows] == ["sgd"]
    assert tables.remarks(compared)[-1] == "Known."
    assert tables.title(compared) == "sgd against 2 optimizers on CIFAR-10"


def test_a_challenger_that_is_not_told_apart_or_diverged(challenged):
    said = verdict(challenged(0.5, 0.7, 0.6))
    assert said.startswith("sgd is not to be told apart from adam (")
    said = verdict(challenged(None, 0.7, 0.6))
    assert said.startswith("sgd has not completed all its runs, so there is no verdict.")
    assert said.count("no verdict") == 1
