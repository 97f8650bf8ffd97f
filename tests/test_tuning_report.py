"""What is said of the tunings, in the tables, the verdict, the figure and MLflow."""

import dataclasses
import itertools
import math

import pytest
from pydantic import ValidationError
from test_comparison import write_record

from optlab.analysis import (
    comparison,
    figures,
    paired_tests,
    report,
    tables,
    tuning_results,
    verdicts,
)
from optlab.records import StudyResult, TrialRecord, TrialsRecord, TuningFiles, TuningResult, ValidationMetrics
from optlab.schema.optimizer import OptimizerSpec
from optlab.system.errors import RecordError
from optlab.tracking import comparison_sync
from optlab.tuning import search, session

RATES = [0.002, 0.02, 0.2, 0.9]
ENTRIES = {"sgd": {"class": "SGD", "lr": {"log": [0.001, 1.0]}}, "adam": {"class": "Adam", "lr": 0.001}}


def trial(index, accuracy, study=0, steps=7, status="completed", **more):
    values = {} if index is None else {"lr": RATES[index]}
    looks = [] if accuracy is None else [ValidationMetrics(step=steps, loss=1.0, accuracy=accuracy)]
    own = {
        "beyond": [],
        "status": status if looks else "diverged",
        "looks": looks,
        "key": f"{study}/{index}",
        "seed": 1,
    }
    return TrialRecord(**({"study": study, "index": index, "values": values} | own | more))


SEARCHED = [trial(None, 0.15), trial(0, 0.2), trial(1, 0.4), trial(2, 0.395), trial(3, None)]


@pytest.fixture
def collect_tuned_comparison(small_config, tmp_path):
    """A function that collects a record with a tuned sgd and an adam that was not."""

    def collect(trials=SEARCHED, accuracies=(0.4, 0.5, 0.6, 0.7), at_edge=(), sensitivity=(), seeds=(0, 1), **changes):
        own = {"trials": 4, "halving": 1} | changes
        config = small_config(seeds=list(seeds), optimizers=ENTRIES, tuning=own)
        write_record(tmp_path, config, accuracies)
        studies = [
            StudyResult(entry={"class": "SGD", "lr": 0.02}, trial=1, validation_accuracy=0.4, at_edge=list(at_edge))
            for _ in range(config.tuning.studies)
        ]
        place = TuningFiles(tmp_path, "sgd")
        TuningResult(is_tuned=True, studies=studies, modules={}).write(place.choice)
        TrialsRecord(trials=list(trials), sensitivity=list(sensitivity)).write(place.trials)
        return comparison.collect(config, tmp_path)

    return collect


def test_best_after_k_trials_averages_all_subsets():
    values = [0.3, 0.1, 0.4, 0.1, 0.5]
    for k, found in enumerate(tuning_results.compute_expected_best(values), start=1):
        subsets = list(itertools.combinations(values, k))
        assert found == pytest.approx(sum(map(max, subsets)) / len(subsets))


def test_best_after_k_handles_many_trials():
    assert tuning_results.compute_expected_best([0.25] * 1100)[549] == pytest.approx(0.25)


def test_learning_rate_width_spans_near_best_trials():
    assert tuning_results.compute_near_best_width([0.001, 0.01, 0.1, 1.0], [0.1, 0.395, 0.4, 0.389]) == pytest.approx(1)


def test_table_and_verdict_mark_tuned_optimizers(collect_tuned_comparison):
    compared = collect_tuned_comparison()
    assert "(test accuracy, sgd tuned, 4 trials, n = 2 seeds" in verdicts.summarize_verdicts(compared)
    header, *rows = tables.build_optimizer_table(compared)
    place = header.index("tuned")
    assert {row[0]: row[place] for row in rows} == {"sgd": "4 trials", "adam": "not tuned"}


def test_selection_at_edge_does_not_count_as_tuned(collect_tuned_comparison):
    compared = collect_tuned_comparison(at_edge=["lr"])
    assert "not tuned: at the edge of its range" in tables.render_text(compared)
    assert "sgd: not tuned: what was chosen lies at the edge of lr: widen the range." in report.render_tuning_page(
        compared
    )


@pytest.mark.parametrize(("default", "at_edge"), [(2.0, ["lr"]), (0.0, ["lr"]), (0.5, [])])
def test_default_outside_range_counts_as_at_edge(collect_tuned_comparison, default, at_edge):
    spec = OptimizerSpec.model_validate({**ENTRIES["sgd"], "default": {"lr": default}})
    chosen = StudyResult(entry={"class": "SGD", "lr": default}, validation_accuracy=0.4)
    choice = TuningResult(is_tuned=True, studies=[chosen], modules={})
    assert (
        dataclasses.replace(collect_tuned_comparison().tunings["sgd"], spec=spec, choice=choice).ranges_at_edge
        == at_edge
    )


def test_recorded_default_overrides_class_default(collect_tuned_comparison):
    """Whatever the installed class's own is: a report must not change with the packages."""
    spec = OptimizerSpec.model_validate({**ENTRIES["sgd"], "default": {"lr": 0.5}})
    chosen = StudyResult(entry={"class": "SGD"}, validation_accuracy=0.4)
    recorded = trial(None, 0.4).model_copy(update={"values": {"lr": 2.0}})
    own = dataclasses.replace(
        collect_tuned_comparison([recorded, *SEARCHED[1:]]).tunings["sgd"], spec=spec,
        choice=TuningResult(is_tuned=True, studies=[chosen], modules={}),
    )  # fmt: skip
    assert (own.ranges_at_edge, own.get_default_value(0, "lr")) == (["lr"], 2.0)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"class": "Adam", "lr": {"log": [1e-4, 1]}}, {"lr": 0.001}),
        ({"class": "Adam", "lr": {"log": [1e-4, 1]}, "default": {"lr": 0.1}}, {"lr": 0.1}),
        ({"class": "Adam", "amsgrad": {"choice": [True, False]}, "eps": {"log": [1e-9, 1]}}, {"eps": 1e-8}),
    ],
)
def test_default_trial_records_values_of_tuned_parameters(entry, expected):
    spec = OptimizerSpec.model_validate(entry)
    assert session.find_default_values(spec) == expected
    work = session.TuningSession(None, "adam", spec, {}, {}, None)
    work.compute_key, work._get_status = lambda trial: "key", lambda trial: "completed"
    assert work.make_record(search.Trial(0, search.DEFAULT_INDEX, 1, {})).values == expected
    assert work.make_record(search.Trial(0, 2, 1, {"lr": 0.5})).values == {"lr": 0.5}


def test_tuning_page_lists_trials_and_statistics(collect_tuned_comparison):
    text = report.render_tuning_page(collect_tuned_comparison())
    assert "| sgd | 4 | 1 | lr 0.02 | 40.00 % | 15.00 % |\n| adam | 0 | – | not tuned | – | – |" in text
    assert "sgd: learning rates within one point of the best span 1.0 decades." in text
    assert f"| 1 | {100 * (0.2 + 0.4 + 0.395 + 0.1) / 4:.2f} % |" in text and "| 4 | 40.00 % |" in text
    assert "the best of every" not in text and "Stopping early" not in text


def test_tuning_page_explains_stopped_trials(collect_tuned_comparison):
    trials = [*SEARCHED[:3], trial(2, 0.3, steps=2, status="stopped"), SEARCHED[4]]
    text = report.render_tuning_page(collect_tuned_comparison(trials, halving=4))
    assert "After 1 and after 2 of 7 steps, the best of every 4 went on." in text
    assert f"Stopping early has saved of the steps: sgd {100 * (1 - (3 * 7 + 2) / (4 * 7)):.0f} %." in text
    assert "`halving: 1` trains all to the end" in text and "| k |" not in text


def test_each_study_counts_as_one_value(collect_tuned_comparison):
    """Four seeds in two studies: the first has the first and the third."""
    trials = [*SEARCHED, *(each.model_copy(update={"study": 1}) for each in SEARCHED)]
    compared = collect_tuned_comparison(trials, [0.40, 0.50, 0.60, 0.70, 0.6, 0.6, 0.6, 0.6], seeds=range(4), studies=2)
    sgd = next(row for row in compared.rows if row.optimizer == "sgd")
    assert sgd.validation_accuracy.n == 2
    assert sgd.validation_accuracy.sd == pytest.approx(0.1 / math.sqrt(2))
    assert len(compared.get_replicate_values("sgd")) == 2 and len(compared.get_seed_values("sgd")) == 4
    assert "n = 2 studies of 2 seeds each" in verdicts.summarize_verdicts(compared)
    assert "| optimizer | study 1 | study 2 | median | spread |" in report.render_tuning_page(compared)
    assert "| sgd, study 2 | 4 | 1 |" in report.render_tuning_page(compared)
    assert "4 trials" in tables.render_text(compared) and "8 trials" not in tables.render_text(compared)
    (axis,) = report._plot_seeds(dataclasses.replace(compared, verdict_metric="validation_accuracy")).axes
    whiskers = {line.get_xdata()[0] for line in axis.lines if line.get_marker() == "|"}
    half = paired_tests.compute_mean_ci([0.5, 0.6]).half_width  # of the two studies
    assert {round(each, 6) for each in whiskers} >= {round(0.55 - half, 6), round(0.55 + half, 6)}
    curve = figures.compute_curves(compared)["validation_accuracy"]["sgd"]
    assert {each.n for each in curve.values()} == {2}


def test_study_column_shows_value_of_confirming_seed(collect_tuned_comparison):
    """Of three studies and three seeds, the seed 3 confirms the first."""
    trials = [each.model_copy(update={"study": study}) for study in range(3) for each in SEARCHED]
    compared = collect_tuned_comparison(trials, [0.4, 0.5, 0.6] * 2, seeds=[1, 2, 3], studies=3)
    ((_, *cells, _, _),) = report.build_study_table(
        dataclasses.replace(compared, verdict_metric="validation_accuracy")
    )[1:]
    assert cells == ["60.00 %", "40.00 %", "50.00 %"]


def test_study_assignment_depends_on_seed_not_position(small_config):
    config = small_config(seeds=[2, 0, 1, 3], optimizers=ENTRIES, tuning={"studies": 2})
    assert comparison.compute_study_means(config, [0.2, 0.0, 0.1, 0.3]) == pytest.approx([0.1, 0.2])
    with pytest.raises(ValidationError, match="a seed's remainder says which study confirms it"):
        small_config(seeds=[0, 2], optimizers=ENTRIES, tuning={"studies": 2})


def test_tuning_page_shows_learning_rate_grid(collect_tuned_comparison):
    grid = [trial(index, accuracy, key=f"grid {number}") for number, (index, accuracy) in
            enumerate([(0, 0.2), (0, 0.3), (1, 0.4), (1, 0.4), (2, None), (2, 0.3)])]  # fmt: skip
    text = report.render_tuning_page(collect_tuned_comparison(sensitivity=grid))
    assert "| learning rate | validation accuracy (2 seeds) |" in text
    assert "| 0.002 | 25.00 ±" in text and "| 0.2 | 20.00 ±" in text  # one that diverged counts as guessing


def test_trial_figure_highlights_selection_and_default(collect_tuned_comparison):
    compared = collect_tuned_comparison([trial(None, 0.15, values={"lr": 0.001}), *SEARCHED[1:]])
    (axis,) = figures.plot_learning_rates(compared).axes
    drawn = {line.get_marker() + str(int(line.get_markersize())): line for line in axis.lines if len(line.get_xdata())}
    assert sorted(drawn["o6"].get_xdata()) == [0.002, 0.02, 0.2]
    assert (list(drawn["x6"].get_xdata()), list(drawn["x6"].get_ydata())) == ([0.9], [0])
    assert list(drawn["o11"].get_xdata()) == [0.02]
    assert (list(drawn["s10"].get_xdata()), list(drawn["s10"].get_ydata())) == ([0.001], [0.15])
    assert not any(line.get_clip_on() for line in drawn.values())  # the best are near the panel's edge

    (axis,) = figures.plot_learning_rates(collect_tuned_comparison()).axes  # an older record lacks the default's value
    assert not any(line.get_marker() == "s" and len(line.get_xdata()) for line in axis.lines)


def test_tuning_files_are_written_and_report_embeds_figure(collect_tuned_comparison, tmp_path):
    compared = collect_tuned_comparison()
    report.write(compared, tmp_path)
    assert (tmp_path / "reports" / "tuning" / "accuracy.png").exists()
    lines = (tmp_path / "reports" / "tuning" / "trials.csv").read_text().splitlines()
    assert len(lines) == 6 and lines[-1].startswith("sgd,0,3,1,diverged,,,,,")
    html = (tmp_path / "reports" / "report.html").read_text()
    assert "<h2>Tuning</h2>" in html and "validation accuracy of every trial" in html


def test_tuning_report_without_ranges_is_minimal(small_config, tmp_path):
    config = small_config()
    write_record(tmp_path, config, [0.4, 0.6])
    report.write(comparison.collect(config, tmp_path), tmp_path)
    assert (tmp_path / "reports" / "tuning.md").read_text().startswith("No hyperparameter has a range")
    assert [each.name for each in (tmp_path / "reports" / "tuning").iterdir()] == ["trials.csv"]
    assert "Tuning" not in (tmp_path / "reports" / "report.html").read_text()


def test_tuning_of_other_params_is_rejected(collect_tuned_comparison, tmp_path):
    compared = collect_tuned_comparison()
    TuningResult(is_tuned=False, studies=[StudyResult(entry={})], modules={}).write(TuningFiles(tmp_path, "sgd").choice)
    with pytest.raises(RecordError, match=r"tuning/sgd/choice\.json: is of other parameters: run `dvc repro`"):
        comparison.collect(compared.config, tmp_path)


def test_mlflow_gets_one_run_per_trial(collect_tuned_comparison, tmp_path):
    found = {each.run: each for each in comparison_sync.build_view(collect_tuned_comparison(), tmp_path).trials}
    assert list(found) == ["sgd default", "sgd 0", "sgd 1", "sgd 2", "sgd 3"]
    assert found["sgd 1"].params == {"optimizer": "sgd", "class": "SGD", "lr": "0.02"}
    assert found["sgd 1"].points == (("validation/accuracy", 0.4, 7), ("validation/loss", 1.0, 7))
    assert {name for name, each in found.items() if each.tags["chosen"] == "yes"} == {"sgd 1"}
    assert found["sgd 3"].tags["status"] == "diverged"
