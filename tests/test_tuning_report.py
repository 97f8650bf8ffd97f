"""What is said of the tunings, in the tables, the verdict, the figure and MLflow."""

import dataclasses
import json
import shutil
import statistics

import pytest
from test_comparison import write_record

from optlab import records
from optlab.analysis import (
    comparison,
    figures,
    report,
    tables,
    tuning_page,
    verdicts,
)
from optlab.records import Choice, TrialRecord, TrialsRecord, TuningFiles, ValidationMetrics
from optlab.schema.optimizer import OptimizerSpec
from optlab.system.errors import RecordError
from optlab.tracking import comparison_sync
from optlab.tuning import search, session

RATES = [0.002, 0.02, 0.2, 0.9]
ENTRIES = {"sgd": {"class": "SGD", "lr": {"log": [0.001, 1.0]}}, "adam": {"class": "Adam", "lr": 0.001}}


def trial(index, accuracy, search=0, steps=7, status="completed", **more):
    values = {} if index is None else {"lr": RATES[index]}
    looks = [] if accuracy is None else [ValidationMetrics(step=steps, loss=1.0, accuracy=accuracy)]
    own = {
        "beyond": [],
        "status": status if looks else "diverged",
        "looks": looks,
        "key": f"{search}/{index}",
        "seed": 1,
    }
    return TrialRecord(**({"search": search, "index": index, "values": values} | own | more))


def choose(lr=0.02, index=1, **more):
    """A choice of sgd."""
    entry = {"class": "SGD"} | ({} if lr is None else {"lr": lr})
    return Choice(is_tuned=True, entry=entry, trial=index, validation_accuracy=0.4, modules={}, **more)


SEARCHED = [trial(None, 0.15), trial(0, 0.2), trial(1, 0.4), trial(2, 0.395), trial(3, None)]


@pytest.fixture
def collect_tuned_comparison(small_config, tmp_path):
    """A function that collects a record with a tuned sgd and an adam that was not."""

    def collect(trials=SEARCHED, accuracies=(0.4, 0.5, 0.6, 0.7), at_edge=(), sensitivity=(), seeds=(0, 1), **changes):
        own = {"trials": 4, "halving": 1, "per_seed": False} | changes
        config = small_config(seeds=list(seeds), optimizers=ENTRIES, tuning=own, verdict={"looks": [2]})
        write_record(tmp_path, config, accuracies)
        for seed in config.seeds:
            number, place = config.get_search_number(seed), TuningFiles(tmp_path, "sgd", seed)
            choose(at_edge=list(at_edge)).write(place.choice)
            found = [each.model_copy(update={"search": number}) for each in trials]
            TrialsRecord(trials=found, sensitivity=list(sensitivity)).write(place.trials)
        return comparison.collect(config, tmp_path)

    return collect


def test_table_and_verdict_mark_tuned_optimizers(collect_tuned_comparison):
    compared = collect_tuned_comparison()
    assert verdicts.summarize_verdicts(compared).basis.startswith(
        "Test accuracy, 4 tuning trials of sgd in one search for all seeds, 2 seeds each;"
    )
    header, *rows = tables.build_optimizer_table(compared)
    place = header.index("tuned")
    assert {row[0]: row[place] for row in rows} == {"sgd": "4 trials", "adam": "not tuned"}


def test_selection_at_edge_does_not_count_as_tuned(collect_tuned_comparison):
    compared = collect_tuned_comparison(at_edge=["lr"])
    assert "not tuned: at the edge of its range" in tables.render_text(compared)
    assert "sgd: not tuned: the search chose a value at the edge of lr: widen the range." in tuning_page.render(
        compared
    )


@pytest.mark.parametrize(("default", "at_edge"), [(2.0, ["lr"]), (0.0, ["lr"]), (0.5, [])])
def test_default_outside_range_counts_as_at_edge(collect_tuned_comparison, default, at_edge):
    spec = OptimizerSpec.model_validate({**ENTRIES["sgd"], "default": {"lr": default}})
    tuning = collect_tuned_comparison().tunings["sgd"]
    assert dataclasses.replace(tuning, spec=spec, choices={0: choose(default, None)}).ranges_at_edge == at_edge


def test_recorded_default_overrides_class_default(collect_tuned_comparison):
    """Whatever the installed class's own is: a report must not change with the packages."""
    spec = OptimizerSpec.model_validate({**ENTRIES["sgd"], "default": {"lr": 0.5}})
    recorded = trial(None, 0.4).model_copy(update={"values": {"lr": 2.0}})
    own = dataclasses.replace(
        collect_tuned_comparison([recorded, *SEARCHED[1:]]).tunings["sgd"], spec=spec,
        choices={0: choose(None, None)},
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
    work = session.TuningSession(None, "adam", 0, spec, {}, {}, None)
    work.compute_key, work._get_status = lambda trial: "key", lambda trial: "completed"
    assert work.make_record(search.Trial(0, search.DEFAULT_INDEX, 1, {})).values == expected
    assert work.make_record(search.Trial(0, 2, 1, {"lr": 0.5})).values == {"lr": 0.5}


def test_tuning_page_lists_trials_and_statistics(collect_tuned_comparison):
    text = tuning_page.render(collect_tuned_comparison())
    assert "| sgd | 1 | 4 | 1 | lr 0.02 | 40.00 % | 15.00 % |\n| adam | 0 | 0 | – | not tuned | – | – |" in text
    assert "One search chose the values for all seeds: the intervals leave out the variation between searches." in text
    assert "the best of every" not in text and "Stopping early" not in text


def test_tuning_page_explains_stopped_trials(collect_tuned_comparison):
    trials = [*SEARCHED[:3], trial(2, 0.3, steps=2, status="stopped"), SEARCHED[4]]
    text = tuning_page.render(collect_tuned_comparison(trials, halving=4))
    assert "2 of 4 trials of a search were trained to the end (selected after 1 and after 2 of 7 steps)." in text
    assert f"Stopping early has saved of the steps: sgd {100 * (1 - (3 * 7 + 2) / (4 * 7)):.0f} %." in text


def test_protocol_counts_complete_trials_over_all_searches(collect_tuned_comparison, tmp_path):
    compared = collect_tuned_comparison(per_seed=True, halving=4)
    TrialsRecord(trials=SEARCHED[:2]).write(TuningFiles(tmp_path, "sgd", 0).trials)
    compared = comparison.collect(compared.config, tmp_path)
    assert "1 to 3 of 4 trials of a search were trained to the end" in tuning_page.describe_tuning_protocol(compared)


def test_page_summarizes_search_of_each_seed(collect_tuned_comparison, tmp_path):
    """Three searches with the same trials, of which the last has chosen another one."""
    compared = collect_tuned_comparison(per_seed=True, seeds=range(3), accuracies=[0.4, 0.5, 0.6] * 2)
    choose(0.002, 0).model_copy(update={"validation_accuracy": 0.2}).write(TuningFiles(tmp_path, "sgd", 2).choice)
    compared = comparison.collect(compared.config, tmp_path)
    assert "4 tuning trials of sgd in a search for each seed, 2 seeds" in verdicts.summarize_verdicts(compared).basis
    text = tuning_page.render(compared)
    chosen = "lr 0.02 (0.002 to 0.02) | 33.33 % (20.00 to 40.00) | 15.00 % (15.00 to 15.00)"
    assert f"| sgd | 3 | 12 | 3 | {chosen} |" in text
    decades, points = statistics.stdev([0.0, 0.0, 1.0]), 100 * statistics.stdev([0.4, 0.4, 0.2])
    assert f"| sgd | {decades:.2f} decades | {points:.2f} points | no |" in text
    assert "4 trials" in tables.render_text(compared) and "12 trials" not in tables.render_text(compared)
    found = comparison_sync.build_view(compared, tmp_path).trials
    assert [each.run for each in found if each.tags["chosen"] == "yes"] == ["sgd 0/1", "sgd 1/1", "sgd 2/0"]


def test_chosen_table_counts_searches_with_the_defaults_accuracy(collect_tuned_comparison, tmp_path):
    compared = collect_tuned_comparison(per_seed=True, seeds=range(5), accuracies=[0.4] * 10)
    for seed in (1, 3):
        TrialsRecord(trials=[trial(None, None, seed), *SEARCHED[1:]]).write(TuningFiles(tmp_path, "sgd", seed).trials)
    compared = comparison.collect(compared.config, tmp_path)
    assert tuning_page.build_chosen_table(compared)[1][-1] == "15.00 % (15.00 to 15.00, 3 of 5)"


def test_half_of_choices_at_edge_count_as_not_tuned(collect_tuned_comparison):
    tuning = collect_tuned_comparison(per_seed=True, seeds=range(3), accuracies=[0.4] * 6).tunings["sgd"]
    for count, expected in ((1, []), (2, ["lr"])):
        choices = {number: choose(at_edge=["lr"] * (number < count)) for number in range(3)}
        assert dataclasses.replace(tuning, choices=choices).ranges_at_edge == expected


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([(0.02, 0.4), (0.011, 0.395), (0.035, 0.391)], True),
        ([(0.02, 0.4), (0.011, 0.395), (0.035, 0.389)], False),  # more than a point below
        ([(0.02, 0.4), (0.009, 0.395), (0.035, 0.4)], False),  # more than 0.3 decades away
        ([], None),
    ],
)
def test_neighbours_are_near_and_as_good(collect_tuned_comparison, trials, expected):
    tuning = collect_tuned_comparison().tunings["sgd"]
    tried = [trial(0, accuracy, values={"lr": rate}) for rate, accuracy in trials]
    stopped = trial(0, 0.4, values={"lr": 0.021}, status="stopped")
    assert dataclasses.replace(tuning, trials=[*tried, stopped]).has_near_neighbours is expected
    if expected is not None:
        warned = "sgd: the search may be too coarse" in tuning_page.render(collect_tuned_comparison([*tried, stopped]))
        assert warned is not expected


def test_record_of_earlier_layout_is_read(collect_tuned_comparison, tmp_path):
    """One file for all seeds, which has the choice in a list."""
    compared = collect_tuned_comparison(per_seed=True)
    shutil.rmtree(tmp_path / "tuning")
    folder = tmp_path / "tuning" / "sgd"
    TrialsRecord(trials=SEARCHED).write(folder / "trials.json")
    study = {"entry": {"class": "SGD", "lr": 0.02}, "trial": 1, "validation_accuracy": 0.4, "at_edge": []}
    (folder / "choice.json").write_text(json.dumps({"is_tuned": True, "studies": [study], "modules": {"a": "b"}}))
    tuning = comparison.collect(compared.config, tmp_path).tunings["sgd"]
    assert tuning.choices == {0: choose().model_copy(update={"modules": {"a": "b"}})}
    assert (len(tuning.trials), tuning.get_chosen_trial(0)) == (5, SEARCHED[2])
    config, choice = records.load_chosen_config(compared.config, tmp_path, "sgd", 1)
    assert (config.optimizers["sgd"].hyperparameters, choice) == ({"lr": 0.02}, tuning.choices[0])


def test_tuning_page_shows_learning_rate_grid(collect_tuned_comparison):
    grid = [trial(index, accuracy, key=f"grid {number}") for number, (index, accuracy) in
            enumerate([(0, 0.2), (0, 0.3), (1, 0.4), (1, 0.4), (2, None), (2, 0.3)])]  # fmt: skip
    text = tuning_page.render(collect_tuned_comparison(sensitivity=grid))
    assert "| learning rate | validation accuracy (2 seeds; a diverged one counts as 10 %) |" in text
    assert "| 0.002 | 25.00 ±" in text and "| 0.2 | 20.00 ±" in text  # one that diverged counts as guessing


def test_grids_of_several_searches_stay_apart(collect_tuned_comparison):
    """Each search has a grid around its own choice, with its own other values."""

    def make_grid(number, *accuracies):
        return [trial(index, each, search=number, key=f"{number} {index}") for index, each in enumerate(accuracies)]

    compared = collect_tuned_comparison(per_seed=True, sensitivity=make_grid(0, 0.2, 0.3) + make_grid(1, 0.5))
    grids = dict(compared.tunings["sgd"].sensitivity_grids)
    assert grids == {0: {0.002: [0.2] * 2, 0.02: [0.3] * 2}, 1: {0.002: [0.5] * 2}}  # both seeds' files have all
    text = tuning_page.render(compared)
    assert "alone, the rest as chosen in the search for seed 0:" in text and "for seed 1:" in text


def test_choices_without_order_have_no_median(collect_tuned_comparison, tmp_path):
    compared = collect_tuned_comparison(per_seed=True, seeds=range(3), accuracies=[0.4, 0.5, 0.6] * 2)
    tuning = compared.tunings["sgd"]
    spec = OptimizerSpec.model_validate({"class": "SGD", "nesterov": {"choice": [True, False]}})

    def describe(*values):
        trials = [each.model_copy(update={"values": values[each.search]}) for each in tuning.trials]
        return tuning_page._format_chosen_values(dataclasses.replace(tuning, trials=trials, spec=spec))

    assert describe({"nesterov": True}, {"nesterov": True}, {"nesterov": False}) == "nesterov true (2), false (1)"
    assert describe({"nesterov": True}, {}, {}) == "nesterov true (1), default (2)"


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


def test_trial_figure_highlights_a_chosen_default(collect_tuned_comparison, tmp_path):
    compared = collect_tuned_comparison([trial(None, 0.45, values={"lr": 0.001}), *SEARCHED[1:]])
    choose(None, None).write(TuningFiles(tmp_path, "sgd", 0).choice)
    (axis,) = figures.plot_learning_rates(comparison.collect(compared.config, tmp_path)).axes
    (ring,) = [line for line in axis.lines if line.get_marker() == "o" and line.get_markersize() == 11]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([0.001], [0.45])


def test_trial_figure_contains_its_legend(collect_tuned_comparison):
    figure = figures.plot_learning_rates(collect_tuned_comparison())
    (legend,) = figure.legends
    left, bottom, right, top = legend.get_window_extent().extents
    assert figure.axes[0].get_tightbbox().y1 <= bottom and top <= figure.bbox.height
    assert left >= 0 and right <= figure.bbox.width


def test_tuning_files_are_written_and_report_embeds_figure(collect_tuned_comparison, tmp_path):
    compared = collect_tuned_comparison()
    report.write(compared, tmp_path)
    assert (tmp_path / "reports" / "tuning" / "accuracy.png").exists()
    lines = (tmp_path / "reports" / "tuning" / "trials.csv").read_text().splitlines()
    assert len(lines) == 6 and lines[-1].startswith("sgd,0,3,1,diverged,,,,,")
    html = (tmp_path / "reports" / "report.html").read_text()
    assert '<section id="tuning">' in html and "validation accuracy of every trial" in html


def test_tuning_report_without_ranges_is_minimal(small_config, tmp_path):
    config = small_config()
    write_record(tmp_path, config, [0.4, 0.6])
    report.write(comparison.collect(config, tmp_path), tmp_path)
    assert (tmp_path / "reports" / "tuning.md").read_text().startswith("No hyperparameter has a range")
    assert [each.name for each in (tmp_path / "reports" / "tuning").iterdir()] == ["trials.csv"]
    assert 'id="tuning"' not in (tmp_path / "reports" / "report.html").read_text()


def test_tuning_of_other_params_is_rejected(collect_tuned_comparison, tmp_path):
    compared = collect_tuned_comparison()
    Choice(is_tuned=False, entry={}, modules={}).write(TuningFiles(tmp_path, "sgd", 0).choice)
    with pytest.raises(RecordError, match=r"tuning/sgd-0/choice\.json: is of other parameters: run `dvc repro`"):
        comparison.collect(compared.config, tmp_path)


def test_mlflow_gets_one_run_per_trial(collect_tuned_comparison, tmp_path):
    found = {each.run: each for each in comparison_sync.build_view(collect_tuned_comparison(), tmp_path).trials}
    assert list(found) == ["sgd default", "sgd 0", "sgd 1", "sgd 2", "sgd 3"]
    assert found["sgd 1"].params == {"optimizer": "sgd", "class": "SGD", "lr": "0.02"}
    assert found["sgd 1"].points == (("validation/accuracy", 0.4, 7), ("validation/loss", 1.0, 7))
    assert {name for name, each in found.items() if each.tags["chosen"] == "yes"} == {"sgd 1"}
    assert found["sgd 3"].tags["status"] == "diverged"
