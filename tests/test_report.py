"""The page that one would send to a colleague: all of it in one file, and in the order in which it is read."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
from test_comparison import write_record
from test_tuning_report import collect_tuned_comparison  # noqa: F401

from optlab.analysis import comparison, environment_diff, figures, report, tables
from optlab.analysis import page as render_page
from optlab.analysis.translation import use_language
from optlab.analysis.verdicts import summarize_verdicts
from optlab.records import Environment, EvalRecord, RunFiles

TOP = Path(__file__).resolve().parents[1]
VENDOR = TOP / "src" / "optlab" / "analysis" / "vendor"


@pytest.fixture
def page(collect_tuned_comparison, tmp_path):  # noqa: F811
    """That of a record in which sgd was tuned, with whole trials."""
    report.write(collect_tuned_comparison(), tmp_path)
    return (tmp_path / "reports" / "report.html").read_text()


def test_report_sections_are_in_reading_order(page):
    parts = ['class="verdict"', 'id="ranking"', 'id="values"', 'id="curves"', 'id="pairs"', 'id="verdicts"',
             'id="tuning"', 'id="cost"', 'id="classes"', 'id="parameters"']  # fmt: skip
    places = [page.index(part) for part in parts]
    assert places == sorted(places)


def without_scripts(page):
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_report_is_self_contained(page, tmp_path):
    """Its own part; test_report_page.py sees that a browser fetches nothing. The policy forbids a browser to."""
    own = without_scripts(page)
    assert "http:" not in own and "https:" not in own
    assert re.findall(r'(?:src|href)="(?!#)([^"]*)', own) == [os.path.relpath("docs/verdicts.md", tmp_path / "reports")]
    assert not re.search(r"url\((?!#)", own)
    assert "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:" in own


def test_report_links_to_verdicts_page_of_checkout(collect_tuned_comparison, monkeypatch):  # noqa: F811
    monkeypatch.chdir(TOP)
    compared = collect_tuned_comparison()
    for folder in ("reports", "tutorial/reports", "studies/optimizers/reports", "ranking"):
        html = render_page.render(compared, figures.compute_curves(compared), Path(folder)).decode()
        (link,) = re.findall(r'href="([^"#]*verdicts\.md)"', html)
        assert (TOP / folder / link).resolve() == TOP / "docs" / "verdicts.md"


def test_only_a_pipeline_names_the_run_of_predict(collect_tuned_comparison):  # noqa: F811
    """A ranking has runs of several pipelines, and `optlab predict` uses none of them."""
    compared = collect_tuned_comparison()
    assert any("`optlab predict` uses" in each for each in tables.list_remarks(compared))
    first, *others = compared.runs
    moved = dataclasses.replace(first, files=dataclasses.replace(first.files, folder=Path("ranking/other")))
    ranking = dataclasses.replace(compared, runs=[moved, *others])
    assert not any("predict" in each for each in tables.list_remarks(ranking))


def test_report_holds_libraries_with_their_licences(page):
    """Of the versions that are named, so that an update is one of both."""
    assert len(page.encode()) < 2_000_000
    for name, version, file in (("d3", "v7.9.0", "d3.min.js"), ("@observablehq/plot", "v0.6.17", "plot.umd.min.js")):
        head = (VENDOR / file).read_text().partition("\n")[0]
        assert head in page and version in head and name.rpartition("/")[2] in head
    for licence in VENDOR.glob("*.LICENSE"):
        assert licence.read_text().strip() in page


def test_report_data_cannot_end_script():
    encoded = render_page._encode_json({"text": "</script><script>alert(1)</script>"})
    assert "<" not in encoded and json.loads(encoded) == {"text": "</script><script>alert(1)</script>"}


def test_report_figures_scale_and_inherit_text_color(page):
    page = without_scripts(page)
    drawn = re.findall(r"<svg[^>]*>", page)
    assert len(drawn) == 6  # the seeds, three curves and the target, and sgd's learning rates
    assert all("viewBox" in each and "width" not in each for each in drawn)
    assert "#000000" not in page and "currentColor" in page
    targets = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', page))
    assert targets <= set(re.findall(r' id="([^"]+)"', page))


def test_report_says_that_no_optimizer_is_tuned(collect_tuned_comparison, tmp_path):  # noqa: F811
    """A column with equal cells is left out, unless they are a warning."""
    compared = collect_tuned_comparison(at_edge=["lr"])
    same = dataclasses.replace(compared, tunings=dict.fromkeys(("sgd", "adam"), compared.tunings["sgd"]))
    html = render_page.render(same, figures.compute_curves(same), tmp_path).decode()
    assert html.count("not tuned: at the edge of its range") == 2


def test_report_is_deterministic(collect_tuned_comparison, tmp_path):  # noqa: F811
    compared = collect_tuned_comparison()
    report.write(compared, tmp_path)
    first = (tmp_path / "reports" / "report.html").read_bytes()
    report.write(compared, tmp_path)
    assert (tmp_path / "reports" / "report.html").read_bytes() == first


def test_confusion_matrix_averages_completed_runs(small_config, tmp_path):
    config = small_config(seeds=[0, 1, 2])
    write_record(tmp_path, config, [0.5] * 6, diverged=["sgd-2"])
    for seed, (right, wrong) in enumerate([(80, 20), (60, 40), (0, 100)]):
        matrix = [[0] * 10 for _ in range(10)]
        matrix[3][3], matrix[3][5] = right, wrong
        status = "diverged" if seed == 2 else "completed"
        shares = [(name, 0.1 * right) for name in "abcdefghij"]
        EvalRecord(
            status=status, test_loss=1.0, test_accuracy=0.5, expected_calibration_error=0.1, confusion=matrix,
            class_accuracy=shares,
        ).write(RunFiles(tmp_path, "sgd", seed).test)  # fmt: skip
    found = dict(render_page.compute_mean_confusions(comparison.collect(config, tmp_path)))
    assert found["sgd"][3] == [0, 0, 0, 70, 0, 30, 0, 0, 0, 0]


def test_report_has_mirrored_accuracy_only_where_it_is_on(small_config, tmp_path):
    pages = {}
    for is_on in (False, True):
        config, folder = small_config(data={"mirror_test": is_on}), tmp_path / str(is_on)
        write_record(folder, config, [0.5, 0.6])
        for name, accuracy in (("sgd", 0.52), ("adam", 0.51)):
            path = RunFiles(folder, name, 0).test
            record = EvalRecord.read(path).model_copy(update={"mirrored_test_accuracy": accuracy if is_on else None})
            record.write(path)
        report.write(comparison.collect(config, folder), folder)
        texts = {each: (folder / "reports" / each).read_text() for each in ("comparison.md", "comparison.csv")}
        pages[is_on] = texts | {"report.html": without_scripts((folder / "reports" / "report.html").read_text())}
    assert not any("irror" in text or "镜像" in text for text in pages[False].values())
    header, _, sgd, *_ = (row for row in pages[True]["comparison.md"].splitlines() if row.startswith("| "))
    cells = dict(zip(header.split(" | "), sgd.split(" | "), strict=True))
    assert (cells["test accuracy"], cells["mirrored test accuracy"]) == ("50.00 %", "52.00 %")
    assert pages[True]["comparison.md"].rstrip().endswith("(left to right); no verdict uses it.")
    assert all(each in pages[True]["report.html"] for each in ("加镜像的测试准确率", "52.00 %", "no verdict uses it."))
    off, on = (pages[each]["comparison.csv"].splitlines()[0].split(",") for each in (False, True))
    columns = [f"mirrored_test_accuracy{part}" for part in ("", "_sd", "_low", "_high")]
    assert [each for each in on if each not in columns] == off and off[15:19] == [
        "test_accuracy", "test_accuracy_sd", "test_accuracy_low", "test_accuracy_high"
    ]  # fmt: skip
    assert on[19:23] == columns


@pytest.mark.parametrize(
    ("augment", "said", "chinese"),
    [("none", "schedule constant", "学习率调度 constant"),
     ("flip_crop", "random flips and crops", "随机翻转、裁剪"),
     ("alternating_flip_crop", "alternating flips and random shifts", "交替镜像和随机平移")],
)  # fmt: skip
def test_protocol_names_augmentation(small_config, tmp_path, augment, said, chinese):
    config = small_config(data={"augment": augment})
    write_record(tmp_path, config, [0.5, 0.6])
    compared = comparison.collect(config, tmp_path)
    assert tables.summarize_protocol(compared).split(" · ")[-1] == said
    with use_language("zh"):
        assert tables.summarize_protocol(compared).split(" · ")[-1] == chinese


def test_differing_environments_are_counted():
    own = Environment(cpu="AMD", packages={"torch": "2.13.0"}, weights_sha256="0")
    cells = environment_diff.build_environment_table([own, own, own.model_copy(update={"cpu": "Intel"}), None])
    assert ["CPU", "AMD (2 runs), Intel (1 run)"] in cells and ["torch", "2.13.0"] in cells


def test_report_lists_parameters_with_defaults(small_config):
    cells = dict(
        environment_diff.build_parameter_table(
            small_config(optimizers={"mine": {"class": "SGD", "lr": {"log": [0.1, 1.0]}}})
        )
    )
    assert cells["training.label_smoothing"] == "0.0" and cells["data.augment"] == "none"
    assert cells["optimizers.mine"] == "class SGD, lr log [0.1, 1.0]"


@pytest.fixture
def collect_challenge(small_config, tmp_path):
    """A function that has sgd, with these test accuracies, challenge adam and adamw."""

    def collect(*accuracies):
        config = small_config(
            seeds=[0, 1, 2],
            verdict={"looks": [3]},
            optimizers={name: {"class": "SGD"} for name in ("sgd", "adam", "adamw")},
        )
        write_record(tmp_path, config, [0.5] * 9, diverged=["sgd-0"] if accuracies[0] is None else [])
        others = [0.70, 0.71, 0.70, 0.50, 0.51, 0.505]
        for (name, seed), value in zip(config.list_runs(), [*accuracies, *others], strict=True):
            if value is not None:
                EvalRecord(
                    status="completed", test_loss=1.0, test_accuracy=value, expected_calibration_error=0.1
                ).write(RunFiles(tmp_path, name, seed).test)
        return dataclasses.replace(comparison.collect(config, tmp_path), challenger="sgd", notes=("Known.",))

    return collect


def test_comparison_pairs_challenger_with_each_optimizer(collect_challenge):
    compared = collect_challenge(0.60, 0.61, 0.604)
    assert list(compared.pairs) == [("sgd", "adam"), ("sgd", "adamw")]
    assert compared.plan.n_pairs == 2
    assert summarize_verdicts(compared).lines == [
        "sgd reaches 60.47 %: it is better than 1 and worse than 1 of 2 optimizers.",
        "- Better than: adamw (9.97 points (8.53 to 11.40)).",
        "- Worse than: adam (−9.87 points (−11.43 to −8.31)).",
        "Test accuracy, 3 seeds each; 95 % intervals, simultaneous over all pairs.",
    ]
    sixth = dataclasses.replace(compared, attempt=2)
    assert sixth.plan.alpha == pytest.approx(0.05 / 6)
    assert "attempt 2 on these seeds (tested at 1/6 of 5 %); 95 % intervals" in summarize_verdicts(sixth).basis
    assert summarize_verdicts(sixth).basis.endswith("simultaneous over all pairs and attempts.")
    header, *rows = tables.build_pair_matrix(compared)
    assert header == ["", "adam", "adamw"] and [row[0] for row in rows] == ["sgd"]
    assert tables.list_remarks(compared)[-1] == "Known."
    assert tables.format_title(compared) == "sgd against 2 optimizers on CIFAR-10"


def test_challengers_small_differences_are_told_as_small(collect_challenge):
    compared = collect_challenge(0.60, 0.61, 0.604)
    verdict = compared.config.verdict.model_copy(update={"margin": 0.2})
    said = summarize_verdicts(
        dataclasses.replace(compared, config=compared.config.model_copy(update={"verdict": verdict}))
    )
    assert said.headline == (
        "sgd reaches 60.47 %: it is better than 1 (by less than the margin) and worse than 1 (by less than the margin) "
        "of 2 optimizers."
    )
    assert said.points[0].startswith("Better by less than 20 points: adamw (")
    assert said.points[1].startswith("Worse by less than 20 points: adam (")


def test_verdict_for_inconclusive_or_diverged_challenger(collect_challenge):
    said = summarize_verdicts(collect_challenge(0.5, 0.7, 0.6))
    assert said.headline == "sgd reaches 60.00 %: it is undecided against 2 of 2 optimizers."
    said = summarize_verdicts(collect_challenge(None, 0.7, 0.6))
    assert said.headline == "No verdict: sgd did not complete all its runs."
    assert said.points == ("No verdict on sgd: 1 of 3 diverged.",)
