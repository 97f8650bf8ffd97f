"""What the comparison says, from records written by hand."""

import csv
import dataclasses
import re

import pytest

from optlab import records
from optlab.analysis import comparison, environment_diff, report, snippet, tables
from optlab.analysis.translation import use_language
from optlab.analysis.verdicts import describe_champion, summarize_verdicts
from optlab.records import Champion, Environment, EpochMetrics, EvalRecord, TrainRecord, ValidationMetrics
from optlab.system.errors import RecordError


def write_record(folder, config, accuracies, diverged=()):
    """A record in which run number i, in the order of params.yaml, has the i-th validation accuracy."""
    for (name, seed), accuracy in zip(config.list_runs(), accuracies, strict=True):
        files = records.RunFiles(folder, name, seed)
        bad = files.id in diverged
        status = "diverged" if bad else "completed"
        epoch = EpochMetrics(
            epoch=1, train_loss=1.0, running_loss=7.0, validation_loss=1.0, validation_accuracy=accuracy, lr=0.1
        )
        TrainRecord(
            status=status, epochs=1, train_loss=None if bad else 1.0, validation_loss=None if bad else 1.0,
            validation_accuracy=None if bad else accuracy, weights_sha256="0", history=[epoch],
            validations=[ValidationMetrics(step=1, loss=1.0, accuracy=accuracy)], step_losses=[[1.0]],
        ).write(files.training)  # fmt: skip
        half = None if bad else 0.5
        EvalRecord(status=status, test_loss=half, test_accuracy=half, expected_calibration_error=half).write(files.test)


def collect_comparison(tmp_path, config, *arguments, **keywords):
    write_record(tmp_path, config, *arguments, **keywords)
    return comparison.collect(config, tmp_path)


def test_single_seed_has_champion_but_no_ranking(small_config, tmp_path):
    compared = collect_comparison(tmp_path, small_config(), [0.4, 0.6])
    assert [row.optimizer for row in compared.rows] == ["sgd", "adam"]
    assert compared.champion.files.id == "adam-0"
    assert compared.pairs == {}


def test_several_seeds_give_mean_interval_and_ranking(small_config, tmp_path):
    compared = collect_comparison(tmp_path, small_config(seeds=[0, 1]), [0.4, 0.8, 0.5, 0.6])
    first, second = compared.rows
    assert (first.optimizer, first.validation_accuracy.mean) == ("sgd", pytest.approx(0.6))
    # Two values 0.4 apart: the sample standard deviation is 0.4 / sqrt(2).
    assert first.validation_accuracy.sd == pytest.approx(0.4 / 2**0.5)
    assert second.validation_accuracy.mean == pytest.approx(0.55)
    assert compared.champion.files.id == "sgd-1"
    # Student's t with one degree of freedom leaves 2.5 % above 12.706.
    assert first.validation_accuracy.half_width == pytest.approx(12.7062 * 0.2, rel=1e-4)
    assert "60.00 ± 254.12 %" in tables.render_text(compared)


def test_optimizer_with_diverged_run_is_ranked_last(small_config, tmp_path):
    compared = collect_comparison(tmp_path, small_config(seeds=[0, 1]), [0.9, 0.9, 0.5, 0.6], diverged=["sgd-1"])
    assert [row.optimizer for row in compared.rows] == ["adam", "sgd"]
    assert compared.rows[1].status == "1 of 2 diverged"
    assert compared.rows[1].validation_accuracy.n == 1  # of the one that is left
    assert re.search(r"sgd +1 of 2 +1 of 2 diverged +90.00 %", tables.render_text(compared))
    assert "1 of 2 diverged" in tables.render_text(compared)
    assert compared.champion.files.id == "sgd-0"  # the best run that completed


def collect_tests(tmp_path, config, accuracies):
    """A comparison of completed runs with these test accuracies, by optimizer."""
    write_record(tmp_path, config, [0.5] * len(config.list_runs()))
    for name, seed in config.list_runs():
        accuracy = accuracies[name][config.seeds.index(seed)]
        EvalRecord(
            status="completed", test_loss=1.0, test_accuracy=accuracy, expected_calibration_error=0.1
        ).write(records.RunFiles(tmp_path, name, seed).test)  # fmt: skip
    return comparison.collect(config, tmp_path)


def test_verdict_speaks_of_the_seeds_of_its_look(small_config, tmp_path):
    """Seven seeds, a look at five: the last two raise adam's mean above sgd's, and decide nothing yet."""
    config = small_config(seeds=list(range(7)), verdict={"looks": [3, 5, 12]})
    sgd, adam = [0.61, 0.6104, 0.6102, 0.6101, 0.6103], [0.6, 0.6004, 0.6002, 0.6001, 0.6003]
    compared = collect_tests(tmp_path, config, {"sgd": [*sgd, 0.61, 0.61], "adam": [*adam, 0.7, 0.7]})
    assert [row.optimizer for row in compared.rows] == ["adam", "sgd"]  # the table has all seeds
    assert compared.completed == ["sgd", "adam"]
    summary = summarize_verdicts(compared)
    assert summary.headline.startswith("sgd wins: 61.02 %, 1.00 points")
    assert summary.points == ("The verdict uses the first 5 of 7 seeds: the next look is at 12.",)
    lines = snippet.render(compared, "markdown").splitlines()
    assert lines[2].startswith("| adam | 5 | 60.02 ±") and lines[3].startswith("| sgd | 5 | 61.02 ±")


def test_verdicts_in_a_circle_have_a_leader(small_config, tmp_path):
    """What was told at the first look stays; an optimizer that collapses later can close a circle."""
    config = small_config(
        seeds=list(range(18)), verdict={"looks": [3, 18]}, optimizers={name: {"class": "SGD"} for name in "abc"}
    )
    values = {
        "a": [0.70, 0.701, 0.702] + [0.30, 0.301, 0.302] * 5,
        "b": [0.60, 0.601, 0.602] * 6,
        "c": [0.50, 0.60, 0.75] + [0.50, 0.501, 0.499] * 5,
    }
    compared = collect_tests(tmp_path, config, values)
    assert all(pair.is_better for pair in compared.pairs.values()) and compared.unbeaten == []
    headline = summarize_verdicts(compared).headline
    assert headline == "No winner yet: b leads, but is not shown to be better than a."


@pytest.mark.parametrize("later", [[None, 0.9], [0.9, None]])
def test_what_was_told_stays_when_another_optimizer_diverges(small_config, tmp_path, later):
    """It was told at three seeds, as the third of Holm's steps; the first two are a's pairs."""
    first = {"a": [0.9, 0.91, 0.92], "b": [0.6, 0.61, 0.62], "c": [0.571, 0.581, 0.591]}
    more = {"a": later, "b": [0.55, 0.6], "c": [0.6, 0.55]}
    both = {name: values + more[name] for name, values in first.items()}
    before, after = (
        collect_with_scores(small_config, tmp_path, figures, {}, "validation_accuracy", [3, 5])
        for figures in (first, both)
    )
    told, kept = before.pairs["b", "c"], after.pairs["b", "c"]
    assert told.verdict == kept.verdict == "better" and 0.05 / 3 < kept.p <= told.p <= 0.05
    assert list(after.pairs) == [("b", "c")]


def test_comparison_without_completed_run_has_no_champion(small_config, tmp_path):
    compared = collect_comparison(tmp_path, small_config(), [0.9, 0.9], diverged=["sgd-0", "adam-0"])
    assert compared.champion is None
    assert "nothing to choose" in summarize_verdicts(compared).headline
    report.write(compared, tmp_path)
    assert Champion.read(tmp_path / "reports" / "champion.json").champion is None


def test_diverged_evaluation_excludes_run_from_champion(small_config, tmp_path):
    """The training completed, with the best validation accuracy of all; the evaluation did not."""
    write_record(tmp_path, small_config(), [0.9, 0.6])
    EvalRecord(status="diverged").write(records.RunFiles(tmp_path, "sgd", 0).test)
    compared = comparison.collect(small_config(), tmp_path)
    assert [(row.optimizer, row.status) for row in compared.rows] == [("sgd", "diverged"), ("adam", "completed")]
    assert compared.champion.files.id == "adam-0"
    report.write(compared, tmp_path)


def test_evaluation_of_other_weights_is_refused(small_config, tmp_path):
    """As after `dvc repro --single-item train@sgd-0`. Records of older versions do not name the weights."""
    write_record(tmp_path, small_config(), [0.9, 0.6])
    EvalRecord(status="completed", weights_sha256="0", test_accuracy=0.5).write(
        records.RunFiles(tmp_path, "sgd", 0).test
    )
    comparison.collect(small_config(), tmp_path)
    EvalRecord(status="completed", weights_sha256="1", test_accuracy=0.5).write(
        records.RunFiles(tmp_path, "sgd", 0).test
    )
    with pytest.raises(RecordError, match=r"sgd-0/test.json: evaluates other weights than .*train.json has: run `dvc"):
        comparison.collect(small_config(), tmp_path)


def test_record_of_other_params_is_refused(small_config, tmp_path):
    """The runs had no validation split, which params.yaml asks for now."""
    write_record(tmp_path, small_config(), [None, 0.6])
    with pytest.raises(RecordError, match=r"sgd-0/train.json: has no validation accuracy: .* run `dvc repro`"):
        comparison.collect(small_config(), tmp_path)


NOTHING = "No run completed: there is nothing to choose."
ONE_SEED = [
    "No verdict with one seed: a difference may come from the optimizers or from the seed.",
    "- The first look is at 3 seeds: add seeds to params.yaml.",
]
ONE_LOOK = "Test accuracy, 3 seeds each; 95 % intervals, simultaneous over all pairs."
UNFINISHED = "- This was the last planned look: further seeds do not change the verdicts."
PREDICT = "`optlab predict` uses {}; this is no verdict."
SCORES = {
    "a": [0.5, 0.51, 0.5], "b": [0.6, 0.61, 0.602], "c": [0.7, 0.71, 0.704], "d": [0.7, 0.71, 0.706],
    "e": [0.8, 0.81, 0.808],
}  # fmt: skip
# Optimizer → the accuracy of each seed, None where that run diverged; planned looks; the verdict; the champion.
BY_ACCURACY = {
    "one seed": ({"sgd": [0.4], "adam": [0.6]}, [3], ONE_SEED, "adam-0, 60.00"),
    "one seed, one diverged": ({"sgd": [None], "adam": [0.6], "adamw": [0.5]}, [3], ONE_SEED, "adam-0, 60.00"),
    "one seed, everything diverged": ({"sgd": [None], "adam": [None]}, [3], [NOTHING], None),
    "before the first look": (
        {"sgd": [0.4, 0.5], "adam": [0.52, 0.5]}, [3, 5],
        ["No verdict yet: there are 2 seeds, and the first look is at 3."], "adam-0, 52.00",
    ),
    # Of two optimizers with a standard deviation of one point and three seeds: 2.776 * sqrt(2 / 3) points.
    "winner of two": (
        {"sgd": [0.40, 0.41, 0.42], "adam": [0.7, 0.71, 0.72]}, [3],
        ["adam wins: 71.00 %, 30.00 points (27.73 to 32.27) ahead of sgd.", ONE_LOOK], "adam-2, 72.00",
    ),
    "winner by little": (
        {"sgd": [0.5, 0.5001, 0.5], "adam": [0.502, 0.5021, 0.502]}, [3],
        ["Too close to matter: adam, with 50.20 %, is 0.20 points (0.19 to 0.21) ahead of sgd. The margin is 0.5 "
         "points.", ONE_LOOK],
        "adam-1, 50.21",
    ),
    "equivalent": (
        {"sgd": [0.5, 0.501, 0.5], "adam": [0.5, 0.5, 0.5005]}, [3],
        ["No difference that matters: sgd and adam are equivalent within 0.5 points.",
         "- sgd and adam are equivalent within 0.5 points: 0.02 points (−0.10 to 0.14).", ONE_LOOK],
        "sgd-1, 50.10",
    ),
    "undecided": (
        {"sgd": [0.4, 0.5, 0.6], "adam": [0.52, 0.5, 0.54]}, [3, 5],
        ["No winner yet: no optimizer is shown to be better than another with 3 seeds.",
         "- adam and sgd are undecided: 2.00 points (−31.32 to 35.32).",
         "- The next look is at 5 seeds: `optlab repro --until-decided` adds seeds and tests again.",
         "Test accuracy, 3 seeds each (look 1 of 2); 95 % intervals, simultaneous over all pairs and looks."],
        "sgd-2, 60.00",
    ),
    "between two looks": (
        {"sgd": [0.4, 0.5, 0.4, 0.5], "adam": [0.52, 0.5, 0.54, 0.5]}, [2, 3, 5],
        ["No winner yet: no optimizer is shown to be better than another with 3 seeds.",
         "- adam and sgd are undecided: 8.67 points (−11.98 to 29.31).",
         "- The verdict uses the first 3 of 4 seeds: the next look is at 5.",
         "Test accuracy, 3 seeds each (look 2 of 3); 95 % intervals, simultaneous over all pairs and looks."],
        "adam-2, 54.00",
    ),
    "two lead": (
        {"sgd": [0.3, 0.31, 0.3], "adam": [0.52, 0.5, 0.54], "adamw": [0.53, 0.52, 0.52]}, [3],
        ["No winner yet: adamw leads, but is not shown to be better than adam.",
         "- adamw and adam are undecided: 0.33 points (−7.19 to 7.86).",
         "- adamw is better than sgd: 22.00 points (20.13 to 23.87).",
         "- adam is better than sgd: 21.67 points (14.14 to 29.19).", UNFINISHED, ONE_LOOK],
        "adam-2, 54.00",
    ),
    "two share the first place": (
        {"sgd": [0.3, 0.31, 0.3], "adam": [0.52, 0.521, 0.52], "adamw": [0.521, 0.52, 0.5205]}, [3],
        ["adamw and adam share the first place: they are equivalent within 0.5 points.",
         "- adamw and adam are equivalent within 0.5 points: 0.02 points (−0.16 to 0.19).",
         "- adamw is better than sgd: 21.72 points (19.21 to 24.22).",
         "- adam is better than sgd: 21.70 points (19.21 to 24.19).",
         f"{ONE_LOOK[:-1]}; equivalence is tested for each pair alone."],
        "adam-1, 52.10",
    ),
    "winner of three": (
        {"sgd": [0.3, 0.31, 0.3], "adam": [0.52, 0.521, 0.52], "adamw": [0.621, 0.62, 0.6205]}, [3],
        ["adamw wins: 62.05 %, 10.02 points (9.84 to 10.19) ahead of adam, the next.",
         "- adamw is better than sgd: 31.72 points (29.21 to 34.22).",
         "- adam is better than sgd: 21.70 points (19.21 to 24.19).", ONE_LOOK],
        "adamw-0, 62.10",
    ),
    # Three pairs are planned, although one optimizer has no verdict.
    "one diverged once": (
        {"sgd": [0.9, 0.9, None], "adam": [0.7, 0.72, 0.71], "adamw": [0.4, 0.41, 0.42]}, [3],
        ["adam wins: 71.00 %, 30.00 points (26.77 to 33.23) ahead of adamw.", "- No verdict on sgd: 1 of 3 diverged.",
         ONE_LOOK],
        "sgd-0, 90.00",
    ),
    "one that is whole": (
        {"sgd": [0.9, 0.9, None], "adam": [0.52, 0.5, 0.54]}, [3],
        ["No verdict: only adam completed all its runs.", "- No verdict on sgd: 1 of 3 diverged."], "sgd-0, 90.00",
    ),
    "none that is whole": (
        {"sgd": [0.9, 0.8, None], "adam": [0.52, None, 0.54]}, [3],
        ["No verdict: no optimizer completed all its runs.", "- No verdict on sgd: 1 of 3 diverged.",
         "- No verdict on adam: 1 of 3 diverged."],
        "sgd-0, 90.00",
    ),
    "three seeds, everything diverged": ({"sgd": [None] * 3, "adam": [None] * 3}, [3], [NOTHING], None),
    "one optimizer, one seed": (
        {"adam": [0.6]}, [3], ["adam is the only optimizer: test accuracy 60.00 %."], "adam-0, 60.00"
    ),
    "one optimizer, three seeds": (
        {"adam": [0.52, 0.5, 0.54]}, [3], ["adam is the only optimizer: test accuracy 52.00 ± 4.97 %."], "adam-2, 54.00"
    ),
    "one optimizer, diverged once": (
        {"adam": [0.52, None, 0.54]}, [3],
        ["No verdict: no optimizer completed all its runs.", "- No verdict on adam: 1 of 3 diverged."], "adam-2, 54.00",
    ),
    "two of five lead": (
        SCORES | {"e": [0.2, 0.21, 0.208]}, [3],
        ["No winner yet: d leads, but is not shown to be better than c.", "- Undecided: d and c.",
         "- In 9 of 10 pairs one optimizer is better; the report lists all pairs.", UNFINISHED, ONE_LOOK],
        "c-1, 71.00",
    ),
    "winner of five": (
        SCORES, [3],
        ["e wins: 80.60 %, 10.07 points (7.70 to 12.43) ahead of d, the next.", "- Undecided: d and c.",
         "- In 9 of 10 pairs one optimizer is better; the report lists all pairs.", UNFINISHED, ONE_LOOK],
        "e-1, 81.00",
    ),
    "an unsteady one of five": (
        SCORES | {"d": [0.7, 0.71, 0.4]}, [3],
        ["No winner yet: e leads, but is not shown to be better than d.",
         "- Undecided: e and d; c and d; b and d; d and a.",
         "- In 6 of 10 pairs one optimizer is better; the report lists all pairs.", UNFINISHED, ONE_LOOK],
        "e-1, 81.00",
    ),
}  # fmt: skip
BY_LOSS = {
    "one seed": ({"sgd": [1.5], "adam": [1.25]}, [3], ONE_SEED, "adam-0, 1.2500"),
    "better": (
        {"sgd": [1.4, 1.41, 1.42], "adam": [1.1, 1.11, 1.12]}, [3],
        ["adam wins: 1.1100, 0.3000 (0.2773 to 0.3227) ahead of sgd.", ONE_LOOK], "adam-0, 1.1000",
    ),
    "undecided": (
        {"sgd": [1.4, 1.5, 1.6], "adam": [1.48, 1.46, 1.5]}, [3],
        ["No winner yet: no optimizer is shown to be better than another with 3 seeds.",
         "- adam and sgd are undecided: −0.0200 (−0.2562 to 0.2162).", UNFINISHED, ONE_LOOK],
        "sgd-0, 1.4000",
    ),
    "everything diverged": ({"sgd": [None], "adam": [None]}, [3], [NOTHING], None),
}  # fmt: skip


def collect_with_scores(small_config, tmp_path, figures, data, key, looks=(3,)):
    seeds = list(range(len(next(iter(figures.values())))))
    optimizers = {name: {"class": "SGD", "lr": 0.01} for name in figures}
    verdict = {"looks": list(looks)}
    config = small_config(seeds=seeds, optimizers=optimizers, data={"dataset": "cifar10"} | data, verdict=verdict)
    write_record(tmp_path, config, [0.5] * len(config.list_runs()))
    for name, seed in config.list_runs():
        files, value = records.RunFiles(tmp_path, name, seed), figures[name][seed]
        status = "diverged" if value is None else "completed"
        TrainRecord.read(files.training).model_copy(update={key: value, "status": status}).write(files.training)
        changes = {"test_accuracy": value, "status": status}
        EvalRecord.read(files.test).model_copy(update=changes).write(files.test)
    return comparison.collect(config, tmp_path)


def describe(compared):
    """The lines of the verdict, and which run is the champion."""
    lines = summarize_verdicts(compared).lines
    return lines, describe_champion(compared) if compared.champion else None


@pytest.mark.parametrize(("figures", "looks", "lines", "champion"), BY_ACCURACY.values(), ids=BY_ACCURACY)
def test_verdict_by_test_accuracy(small_config, tmp_path, figures, looks, lines, champion):
    compared = collect_with_scores(small_config, tmp_path, figures, {}, "validation_accuracy", looks)
    run, _, value = (champion or ", ").partition(", ")
    expected = PREDICT.format(f"{run}, the run with the best validation accuracy ({value} %)") if champion else None
    assert describe(compared) == (lines, expected)


@pytest.mark.parametrize(("figures", "looks", "lines", "champion"), BY_LOSS.values(), ids=BY_LOSS)
def test_verdict_by_training_loss(small_config, tmp_path, figures, looks, lines, champion):
    """Where it was trained on the test split, as in the tutorial."""
    data = {"train_split": "test", "shuffle": False, "train_size": 100, "validation_size": 0}
    compared = collect_with_scores(small_config, tmp_path, figures, data, "train_loss", looks)
    run, _, value = (champion or ", ").partition(", ")
    expected = PREDICT.format(f"{run}, the run with the best training loss ({value})") if champion else None
    by_loss = [line.replace("Test accuracy", "Training loss") for line in lines]
    assert describe(compared) == (by_loss, expected)


def test_leader_may_be_undecided_against_a_beaten_one(small_config, tmp_path):
    """As Muon before all but NAdam, whose seeds scatter much, and which others beat."""
    figures = {"a": [0.8, 0.81, 0.805], "b": [0.7, 0.71, 0.705], "c": [0.6, 0.61, 0.605]}
    compared = collect_with_scores(small_config, tmp_path, figures, {}, "validation_accuracy")
    assert summarize_verdicts(compared).headline.startswith("a wins: ")
    compared.pairs["a", "c"] = dataclasses.replace(compared.pairs["a", "c"], verdict="undecided")
    assert compared.best == []
    assert summarize_verdicts(compared).headline == "No winner yet: a leads, but is not shown to be better than c."


def test_best_and_undecided_follow_the_pairs(small_config, tmp_path):
    """Before the first look, everything is undecided; later what is told decides."""
    figures = {"sgd": [0.3, 0.31, 0.3], "adam": [0.52, 0.521, 0.52], "adamw": [0.521, 0.52, 0.5205]}
    before = collect_with_scores(small_config, tmp_path, figures, {}, "validation_accuracy", [4])
    assert (len(before.undecided), before.best, before.unbeaten, before.next_look) == (3, [], [], 4)
    shared = collect_with_scores(small_config, tmp_path, figures, {}, "validation_accuracy", [3])
    assert (shared.undecided, shared.best, shared.next_look) == ([], ["adamw", "adam"], None)
    figures["adam"] = [0.52, 0.5, 0.54]
    open_ = collect_with_scores(small_config, tmp_path, figures, {}, "validation_accuracy", [3, 9])
    assert (open_.undecided[0], open_.best, open_.next_look) == (("adamw", "adam"), [], 9)


def test_report_contains_paired_comparisons(small_config, tmp_path):
    figures = {"sgd": [0.3, 0.31, 0.3], "adam": [0.52, 0.5, 0.54], "adamw": [0.53, 0.52, 0.52]}
    compared = collect_with_scores(small_config, tmp_path, figures, {}, "validation_accuracy")
    report.write(compared, tmp_path)
    with (tmp_path / "reports" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["first"], row["second"], row["verdict"]) for row in rows] == [
        ("adamw", "adam", "undecided"), ("adamw", "sgd", "better"), ("adam", "sgd", "better"),
    ]  # fmt: skip
    assert [row["better"] for row in rows] == ["", "adamw", "adam"]
    assert float(rows[1]["difference"]) == pytest.approx(0.22)
    text = (tmp_path / "reports" / "comparison.md").read_text()
    assert text.startswith("**No winner yet: adamw leads, ")
    assert "| adamw − sgd | 22.00 points (20.13 to 23.87) | 3.8e-06 | 3 of 3 | −0.50 | adamw better |" in text
    assert '<span class="en" lang="en">adamw better</span>' in (tmp_path / "reports" / "report.html").read_text()


def test_pairs_file_names_the_optimizer_with_lower_loss(small_config, tmp_path):
    data = {"train_split": "test", "shuffle": False, "train_size": 100, "validation_size": 0}
    figures = {"sgd": [1.4, 1.41, 1.42], "adam": [1.1, 1.11, 1.12]}
    report.write(collect_with_scores(small_config, tmp_path, figures, data, "train_loss"), tmp_path)
    with (tmp_path / "reports" / "pairs.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["difference"]) < 0 and row["better"] == row["first"] == "adam"


def test_pair_table_has_a_cell_where_only_others_have_a_probability(small_config, tmp_path):
    """The seeds of c are others: its pairs have no probability of outperforming."""
    optimizers = {name: {"class": "SGD"} for name in "abc"}
    config = small_config(seeds=list(range(30)), optimizers=optimizers, verdict={"looks": [30]})
    others = list(range(30, 60))
    for seeds in (config.seeds, others):
        write_record(tmp_path, config.model_copy(update={"seeds": seeds}), [0.5] * 90)
    folders = {"c": comparison.RecordFolders(tmp_path, tmp_path, tuple(others))}
    header, *rows = tables.build_pair_table(comparison.collect(config, tmp_path, folder_overrides=folders))
    assert {len(row) for row in rows} == {len(header)}
    place = header.index("probability of outperforming")
    assert [row[place] == "–" for row in rows] == [False, True, True]


def test_pair_matrix_is_antisymmetric(small_config, tmp_path):
    figures = {"sgd": [0.3, 0.31, 0.3], "adam": [0.52, 0.5, 0.54], "adamw": [0.53, 0.52, 0.52]}
    compared = collect_with_scores(small_config, tmp_path, figures, {}, "validation_accuracy")
    assert tables.build_pair_matrix(compared, mark="*") == [
        ["", "adamw", "adam", "sgd"],
        ["adamw", "", "0.33 (−7.19 to 7.86)", "22.00 (20.13 to 23.87)*"],
        ["adam", "−0.33 (−7.86 to 7.19)", "", "21.67 (14.14 to 29.19)*"],
        ["sgd", "−22.00 (−23.87 to −20.13)*", "−21.67 (−29.19 to −14.14)*", ""],
    ]
    assert tables.label_cells(compared) == {
        "adamw": {"adam": "undecided", "sgd": "better"},
        "adam": {"adamw": "undecided", "sgd": "better"},
        "sgd": {"adamw": "worse", "adam": "worse"},
    }


LOOKS = {  # seed by seed, the accuracies after 7, 14 and 21 steps
    "sgd": [(0.1, 0.2, 0.3), (0.1, 0.2, 0.35), (0.2, 0.3, 0.2)],
    "adam": [(0.3, 0.5, 0.5), (0.2, 0.3, 0.6), (0.6, 0.4, 0.4)],
    "adamw": [(0.3, 0.5, 0.4), (0.2, 0.6, 0.6), (0.1, 0.3, 0.45)],
}
REACHED = {
    # The means at the end are 50 % of adam and 48.33 % of adamw; the second of them is the target.
    "by default": (
        None,
        {"sgd": (0, None), "adam": (3, 14), "adamw": (2, 14)},
        "48.33 %, the second highest mean at the end of training",
    ),
    "given": (0.3, {"sgd": (3, 21), "adam": (3, 7), "adamw": (3, 14)}, "30.00 %, as params.yaml has it"),
    "out of reach": (0.9, dict.fromkeys(LOOKS, (0, None)), "90.00 %, as params.yaml has it"),
    "reached by a few": (0.6, {"sgd": (0, None), "adam": (2, 21), "adamw": (1, None)}, "60.00 %"),
}


@pytest.mark.parametrize(("target", "expected", "said"), REACHED.values(), ids=REACHED)
def test_steps_to_target(small_config, tmp_path, target, expected, said):
    optimizers = {name: {"class": "SGD", "lr": 0.01} for name in LOOKS}
    config = small_config(seeds=[0, 1, 2], optimizers=optimizers, verdict={"target": target})
    write_record(tmp_path, config, [looks[-1] for name in LOOKS for looks in LOOKS[name]])
    for name, seed in config.list_runs():
        path = records.RunFiles(tmp_path, name, seed).training
        seen = [
            ValidationMetrics(step=step, loss=1.0, accuracy=accuracy)
            for step, accuracy in zip((7, 14, 21), LOOKS[name][seed], strict=True)
        ]
        TrainRecord.read(path).model_copy(update={"validations": seen}).write(path)
    compared = comparison.collect(config, tmp_path)
    found = {name: (compared.target.count_reached(name), compared.target.compute_median_steps(name)) for name in LOOKS}
    assert found == expected
    assert said in tables.render_text(compared)
    report.write(compared, tmp_path)
    with (tmp_path / "reports" / "comparison.csv").open() as file:
        rows = {row["optimizer"]: (int(row["reached"]), row["steps_to_target"]) for row in csv.DictReader(file)}
    assert rows == {name: (count, str(steps or "")) for name, (count, steps) in expected.items()}


def test_report_files_are_reproducible(small_config, tmp_path):
    compared = collect_comparison(tmp_path, small_config(), [0.4, 0.6])
    report.write(compared, tmp_path)
    before = read_files(tmp_path / "reports")
    report.write(compared, tmp_path)
    assert read_files(tmp_path / "reports") == before
    assert len(before) == 16


def test_table_shows_gradients_per_step_and_schedule(small_config, tmp_path):
    optimizers = {
        "sgd": {"class": "SGD", "lr": 0.01},
        "twice": {"class": "SGD", "lr": 0.01, "schedule": {"name": "cosine", "warmup_epochs": 0}},
    }
    plain = collect_comparison(tmp_path, small_config(seeds=[0, 1]), [0.4, 0.5, 0.6, 0.7])
    assert not {"gradients a step", "schedule"} & set(tables.build_optimizer_table(plain)[0])
    config = small_config(seeds=[0, 1], optimizers=optimizers)
    write_record(tmp_path, config, [0.4, 0.5, 0.6, 0.7])
    for name, seed in config.list_runs():
        path = records.RunFiles(tmp_path, name, seed).training
        trained = TrainRecord.read(path)
        history = [trained.history[0].model_copy(update={"gradients": 2 if name == "twice" else 1})]
        trained.model_copy(update={"history": history}).write(path)
    header, sgd, twice = tables.build_optimizer_table(comparison.collect(config, tmp_path))
    assert header[-2:] == ["gradients a step", "schedule"]
    assert (twice[-2:], sgd[-2:]) == (["2", "cosine"], ["1", "constant"])


@pytest.mark.parametrize(("diverged", "accuracy"), [(["a-1"], 0.4), (["a-1", "b-1"], 0.5)])
def test_target_is_set_by_optimizers_without_diverged_run(small_config, tmp_path, diverged, accuracy):
    """Unless there are fewer than two of them."""
    config = small_config(seeds=[0, 1], optimizers={name: {"class": "SGD"} for name in "abc"})
    compared = collect_comparison(tmp_path, config, [0.9, 0.9, 0.5, 0.5, 0.4, 0.4], diverged)
    assert compared.target.accuracy == pytest.approx(accuracy)


def test_equal_accuracies_reach_target_at_mean(small_config, tmp_path):
    """The mean of three times 0.1 is 0.10000000000000002."""
    compared = collect_comparison(tmp_path, small_config(seeds=[0, 1, 2]), [0.1] * 3 + [0.6] * 3)
    assert (compared.target.count_reached("sgd"), compared.target.count_reached("adam")) == (3, 3)


def test_single_optimizer_has_no_target(small_config, tmp_path):
    compared = collect_comparison(tmp_path, small_config(optimizers={"sgd": {"class": "SGD"}}), [0.4])
    assert compared.target is None
    assert "target" not in tables.render_text(compared)


def test_old_record_uses_epoch_ends_as_validations(small_config, tmp_path):
    config = small_config(verdict={"target": 0.5})
    write_record(tmp_path, config, [0.4, 0.6])
    for name, seed in config.list_runs():
        path = records.RunFiles(tmp_path, name, seed).training
        TrainRecord.read(path).model_copy(update={"validations": []}).write(path)
    assert comparison.collect(config, tmp_path).target.steps == {"sgd": (None,), "adam": (1,)}


def test_terminal_omits_matrix_of_many_optimizers(small_config, tmp_path):
    optimizers = {name: {"class": "SGD", "lr": 0.01} for name in "abcde"}
    config = small_config(seeds=[0, 1], optimizers=optimizers, verdict={"looks": [2]})
    compared = collect_comparison(tmp_path, config, [0.5, 0.6] * 5)
    assert "Row minus column" not in tables.render_text(compared)
    assert "−0.00" not in tables.render_markdown(compared) + str(tables.build_pair_matrix(compared))
    assert "abcde"[3] in tables.build_pair_matrix(compared)[0]


def read_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_environment_diff_names_runs(small_config, tmp_path):
    config = small_config(seeds=[0, 1])
    write_record(tmp_path, config, [0.4, 0.8, 0.5, 0.6])
    made = {
        "sgd-0": {"packages": {"torch": "2.12", "mlflow": "3"}},
        "sgd-1": {"packages": {"torch": "2.13", "mlflow": "4"}},
        "adam-0": {"packages": {"torch": "2.13", "mlflow": "3"}, "cpu_capability": "AVX2"},
        "adam-1": {"packages": {"torch": "2.13", "mlflow": "3"}, "weights_sha256": "of another training"},
    }
    for run, values in made.items():
        conditions = Environment(**{"weights_sha256": "0", "cpu_capability": "AVX512"} | values)
        conditions.write(records.RunFiles.from_id(tmp_path, run).environment)
    compared = comparison.collect(config, tmp_path)
    assert compared.differing_conditions == {
        "CPU capability": {"AVX512": ["sgd-0", "sgd-1"], "AVX2": ["adam-0"]},
        "torch": {"2.12": ["sgd-0"], "2.13": ["sgd-1", "adam-0"]},
        "conditions": {"not recorded": ["adam-1"]},
    }
    assert "torch 2.12 (sgd-0), 2.13 (sgd-1, adam-0)" in tables.render_text(compared)
    with use_language("zh"):
        text = environment_diff.describe_differences(compared.differing_conditions)
    assert "运行条件 没有记录（adam-1）" in text and not {"conditions", "recorded"} & set(re.findall("[a-z]+", text))


def test_environment_diff_ignores_cpu_with_portable_numerics(small_config, tmp_path):
    config = small_config(training={"numerics": "portable"})
    write_record(tmp_path, config, [0.4, 0.8])
    for name, cpu in (("sgd", "AMD"), ("adam", "Intel")):  # whose bits are the same with `portable`
        Environment(weights_sha256="0", cpu=cpu).write(records.RunFiles(tmp_path, name, 0).environment)
    assert comparison.collect(config, tmp_path).differing_conditions == {}


def test_environment_diff_ignores_packages_of_single_optimizer(small_config, tmp_path):
    config = small_config()
    write_record(tmp_path, config, [0.4, 0.8])
    for name, more in (("sgd", {}), ("adam", {"schedulefree": "1.4"})):
        packages = {"torch": "2.13", **more}
        Environment(weights_sha256="0", packages=packages).write(records.RunFiles(tmp_path, name, 0).environment)
    assert comparison.collect(config, tmp_path).differing_conditions == {}
