"""What the comparison says, from records written by hand."""

import pytest

from optlab.record import runs
from optlab.record.contents import Champion, Conditions, Epoch, Evaluated, Trained
from optlab.results import comparison, report
from optlab.system.errors import RecordError


def write(folder, config, accuracies, diverged=()):
    """A record in which run number i, in the order of params.yaml, has the i-th validation accuracy."""
    for (name, seed), accuracy in zip(config.runs(), accuracies, strict=True):
        files = runs.RunFiles(folder, name, seed)
        bad = files.id in diverged
        status = "diverged" if bad else "completed"
        epoch = Epoch(
            epoch=1, train_loss=1.0, running_loss=7.0, validation_loss=1.0, validation_accuracy=accuracy, lr=0.1
        )
        Trained(
            status=status, epochs=1, train_loss=None if bad else 1.0, validation_loss=None if bad else 1.0,
            validation_accuracy=None if bad else accuracy, weights_sha256="0", history=[epoch], step_losses=[[1.0]],
        ).write(files.training)  # fmt: skip
        half = None if bad else 0.5
        Evaluated(status=status, test_loss=half, test_accuracy=half, expected_calibration_error=half).write(files.test)


def collected(tmp_path, config, *arguments, **keywords):
    write(tmp_path, config, *arguments, **keywords)
    return comparison.collect(config, tmp_path)


def test_the_best_validation_accuracy_comes_first(small_config, tmp_path):
    compared = collected(tmp_path, small_config(), [0.4, 0.6])
    assert [row.optimizer for row in compared.rows] == ["adam", "sgd"]
    assert compared.champion.files.id == "adam-0"
    assert "adam has the best validation accuracy, 60.00% (n = 1)" in comparison.verdict(compared)
    assert "add seeds" in comparison.verdict(compared)


def test_several_seeds_give_mean_and_standard_deviation(small_config, tmp_path):
    compared = collected(tmp_path, small_config(seeds=[0, 1]), [0.4, 0.8, 0.5, 0.6])
    first, second = compared.rows
    assert (first.optimizer, first.validation_accuracy.mean) == ("sgd", pytest.approx(0.6))
    # Two values 0.4 apart: the sample standard deviation is 0.4 / sqrt(2).
    assert first.validation_accuracy.sd == pytest.approx(0.4 / 2**0.5)
    assert second.validation_accuracy.mean == pytest.approx(0.55)
    assert compared.champion.files.id == "sgd-1"
    assert "60.00 ± 28.28 %" in report.text_table(compared)


def test_a_diverged_run_comes_last_and_is_named(small_config, tmp_path):
    compared = collected(tmp_path, small_config(seeds=[0, 1]), [0.9, 0.9, 0.5, 0.6], diverged=["sgd-1"])
    assert [row.optimizer for row in compared.rows] == ["adam", "sgd"]
    assert compared.rows[1].status == "1 of 2 diverged"
    assert "1 of 2 diverged" in report.text_table(compared)
    assert compared.champion.files.id == "sgd-0"  # the best run that completed


def test_nothing_completed(small_config, tmp_path):
    compared = collected(tmp_path, small_config(), [0.9, 0.9], diverged=["sgd-0", "adam-0"])
    assert compared.champion is None
    assert "nothing to choose" in comparison.verdict(compared)
    report.write(compared, tmp_path)
    assert Champion.read(tmp_path / "reports" / "champion.json").champion is None


def test_outputs_that_are_not_finite_on_the_test_split_are_divergence(small_config, tmp_path):
    """The training completed, with the best validation accuracy of all; the evaluation did not."""
    write(tmp_path, small_config(), [0.9, 0.6])
    Evaluated(status="diverged").write(runs.RunFiles(tmp_path, "sgd", 0).test)
    compared = comparison.collect(small_config(), tmp_path)
    assert [(row.optimizer, row.status) for row in compared.rows] == [("adam", "completed"), ("sgd", "diverged")]
    assert compared.champion.files.id == "adam-0"
    report.write(compared, tmp_path)


def test_a_record_of_other_parameters_is_refused(small_config, tmp_path):
    """The runs had no validation split, which params.yaml asks for now."""
    write(tmp_path, small_config(), [None, 0.6])
    with pytest.raises(RecordError, match=r"sgd-0/train.json: has no validation accuracy: .* run `dvc repro`"):
        comparison.collect(small_config(), tmp_path)


CAUTION = (
    "With one seed each, this cannot tell the optimizer's part from the seed's: add seeds in params.yaml before you "
    "rely on a small difference."
)
NOTHING = "No run completed: there is nothing to choose."
# Optimizer → the figure of each seed, None where that run diverged; then what is said.
BY_ACCURACY = {
    "one seed": (
        {"sgd": [0.4], "adam": [0.6]},
        f"adam has the best validation accuracy, 60.00% (n = 1). {CAUTION}",
    ),
    "one seed, the runner-up diverged": (
        {"sgd": [None], "adam": [0.6]},
        f"adam has the best validation accuracy, 60.00% (n = 1). No other optimizer completed all its runs. {CAUTION}",
    ),
    "one seed, the last one diverged": (
        {"sgd": [None], "adam": [0.6], "adamw": [0.5]},
        f"adam has the best validation accuracy, 60.00% (n = 1). {CAUTION}",
    ),
    "one seed, everything diverged": ({"sgd": [None], "adam": [None]}, NOTHING),
    "three seeds": (
        {"sgd": [0.4, 0.5, 0.6], "adam": [0.52, 0.5, 0.54]},
        "adam has the best validation accuracy, 52.00% (n = 3). The next, sgd, is 2.00 points away; the standard "
        "deviations over seeds are 2.00 points and 10.00 points.",
    ),
    "three seeds, the runner-up diverged once": (
        {"sgd": [0.9, 0.9, None], "adam": [0.52, 0.5, 0.54]},
        "adam has the best validation accuracy, 52.00% (n = 3). No other optimizer completed all its runs; the "
        "standard deviation over seeds is 2.00 points.",
    ),
    "three seeds, every optimizer diverged once": (
        {"sgd": [0.9, 0.8, None], "adam": [0.52, None, 0.54]},
        "No optimizer completed all its runs, so there is no verdict. The best validation accuracy of the 4 runs that "
        "completed is 90.00%, of sgd-0.",
    ),
    "three seeds, one run completed": (
        {"sgd": [None, 0.8, None], "adam": [None, None, None]},
        "No optimizer completed all its runs, so there is no verdict. The only run that completed is sgd-1, with a "
        "validation accuracy of 80.00%.",
    ),
    "three seeds, everything diverged": ({"sgd": [None] * 3, "adam": [None] * 3}, NOTHING),
    "one optimizer, one seed": ({"adam": [0.6]}, "adam is the only optimizer: validation accuracy 60.00% (n = 1)."),
    "one optimizer, three seeds": (
        {"adam": [0.52, 0.5, 0.54]},
        "adam is the only optimizer: validation accuracy 52.00% (n = 3); the standard deviation over seeds is 2.00 "
        "points.",
    ),
    "one optimizer, diverged once": (
        {"adam": [0.52, None, 0.54]},
        "No optimizer completed all its runs, so there is no verdict. The best validation accuracy of the 2 runs that "
        "completed is 54.00%, of adam-2.",
    ),
    "one optimizer, diverged": ({"adam": [None]}, NOTHING),
}
BY_LOSS = {
    "one seed": ({"sgd": [1.5], "adam": [1.25]}, f"adam has the best train loss, 1.2500 (n = 1). {CAUTION}"),
    "one seed, the runner-up diverged": (
        {"sgd": [None], "adam": [1.25]},
        f"adam has the best train loss, 1.2500 (n = 1). No other optimizer completed all its runs. {CAUTION}",
    ),
    "three seeds": (
        {"sgd": [1.4, 1.5, 1.6], "adam": [1.48, 1.46, 1.5]},
        "adam has the best train loss, 1.4800 (n = 3). The next, sgd, is 0.0200 away; the standard deviations over "
        "seeds are 0.0200 and 0.1000.",
    ),
    "three seeds, every optimizer diverged once": (
        {"sgd": [1.4, 1.5, None], "adam": [1.48, None, 1.5]},
        "No optimizer completed all its runs, so there is no verdict. The best train loss of the 4 runs that completed "
        "is 1.4000, of sgd-0.",
    ),
    "everything diverged": ({"sgd": [None], "adam": [None]}, NOTHING),
    "one optimizer, three seeds": (
        {"adam": [1.48, 1.46, 1.5]},
        "adam is the only optimizer: train loss 1.4800 (n = 3); the standard deviation over seeds is 0.0200.",
    ),
}


def said_of(small_config, tmp_path, figures, data, key):
    seeds = list(range(len(next(iter(figures.values())))))
    optimizers = {name: {"class": "SGD", "lr": 0.01} for name in figures}
    config = small_config(seeds=seeds, optimizers=optimizers, data=data)
    write(tmp_path, config, [0.5] * len(config.runs()))
    for name, seed in config.runs():
        files, value = runs.RunFiles(tmp_path, name, seed), figures[name][seed]
        trained = Trained.read(files.training)
        changes = {key: value, "status": "diverged" if value is None else "completed"}
        trained.model_copy(update=changes).write(files.training)
    return comparison.verdict(comparison.collect(config, tmp_path))


@pytest.mark.parametrize(("figures", "expected"), BY_ACCURACY.values(), ids=BY_ACCURACY)
def test_the_verdict_by_validation_accuracy(small_config, tmp_path, figures, expected):
    assert said_of(small_config, tmp_path, figures, {}, "validation_accuracy") == expected


@pytest.mark.parametrize(("figures", "expected"), BY_LOSS.values(), ids=BY_LOSS)
def test_the_verdict_by_training_loss(small_config, tmp_path, figures, expected):
    """Where there is no validation split, as in the tutorial."""
    data = {"train_split": "test", "shuffle": False, "train_size": 100, "validation_size": 0}
    assert said_of(small_config, tmp_path, figures, data, "train_loss") == expected


def test_the_same_record_gives_the_same_files(small_config, tmp_path):
    compared = collected(tmp_path, small_config(), [0.4, 0.6])
    report.write(compared, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "reports").iterdir()}
    report.write(compared, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "reports").iterdir()} == before
    assert len(before) == 7


def test_runs_made_under_different_conditions_are_named(small_config, tmp_path):
    config = small_config(seeds=[0, 1])
    write(tmp_path, config, [0.4, 0.8, 0.5, 0.6])
    made = {
        "sgd-0": {"packages": {"torch": "2.12", "mlflow": "3"}},
        "sgd-1": {"packages": {"torch": "2.13", "mlflow": "4"}},
        "adam-0": {"packages": {"torch": "2.13", "mlflow": "3"}, "cpu_capability": "AVX2"},
        "adam-1": {"packages": {"torch": "2.13", "mlflow": "3"}, "weights_sha256": "of another training"},
    }
    for run, values in made.items():
        conditions = Conditions(**{"weights_sha256": "0", "cpu_capability": "AVX512"} | values)
        conditions.write(runs.RunFiles.of(tmp_path, run).conditions)
    compared = comparison.collect(config, tmp_path)
    assert compared.mixture == {
        "CPU capability": {"AVX512": ["sgd-0", "sgd-1"], "AVX2": ["adam-0"]},
        "torch": {"2.12": ["sgd-0"], "2.13": ["sgd-1", "adam-0"]},
        "conditions": {"not recorded": ["adam-1"]},
    }
    assert "torch 2.12 (sgd-0), 2.13 (sgd-1, adam-0)" in report.text_table(compared)


def test_what_is_the_same_for_all_is_not_named(small_config, tmp_path):
    config = small_config(training={"numerics": "portable"})
    write(tmp_path, config, [0.4, 0.8])
    for name, cpu in (("sgd", "AMD"), ("adam", "Intel")):  # whose bits are the same with `portable`
        Conditions(weights_sha256="0", cpu=cpu).write(runs.RunFiles(tmp_path, name, 0).conditions)
    assert comparison.collect(config, tmp_path).mixture == {}


def test_an_optimizer_s_own_package_is_no_condition_of_the_others(small_config, tmp_path):
    config = small_config()
    write(tmp_path, config, [0.4, 0.8])
    for name, more in (("sgd", {}), ("adam", {"schedulefree": "1.4"})):
        packages = {"torch": "2.13", **more}
        Conditions(weights_sha256="0", packages=packages).write(runs.RunFiles(tmp_path, name, 0).conditions)
    assert comparison.collect(config, tmp_path).mixture == {}
