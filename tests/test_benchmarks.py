"""The benchmarks run without a PATH of their own, look for what they need first, and keep what they measured."""

import json
import subprocess
import sys

import bad_input
import bad_params
import bf16
import catalog_entries
import classes
import needs
import numpy as np
import price
import pytest
import random_step
import ready_entries
import side_by_side
import throughput
import torch

from optlab.data import cifar10
from optlab.records import Environment
from optlab.schema.parameters import DataConfig
from optlab.system.errors import DataError, OptlabError

RATES = {"tutorial": 2000, "lightning": 1900, "optlab fp32": 3000, "optlab portable": 2200, "optlab bf16": 4500}
PEAKS = {"peak fp32": {"peak": 2e11, "flop": 7e7}, "peak bf16": {"peak": 4e11, "flop": 7e7}}
STEPS = {f"step {precision}": {"convolution": 0.7, "the rest": 0.3} for precision in ("fp32", "bf16")}
FIGURES = {name: {"rate": rate} for name, rate in RATES.items()} | PEAKS | STEPS
DEFAULT = {"default": {"rate": 2400.0, "logging": 0.03}}


@pytest.fixture
def run_benchmark(tmp_path, monkeypatch):
    """A function that runs a benchmark with another function for one of its own, and returns the page it leaves."""
    monkeypatch.setattr(needs, "check", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # it would outlive the test

    def run(benchmark, name, function, *arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
        monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "RESULTS.md")
        monkeypatch.setattr(benchmark, name, function)
        with pytest.raises(SystemExit, match="the moon"):
            benchmark.main()
        return benchmark.RESULTS.read_text() if benchmark.RESULTS.exists() else None

    return run


def exit_after(count, answers):
    """A function that gives so many answers, by its first argument, and then ends the program."""
    left = iter(range(count))

    def measure(what, *_):
        if next(left, None) is None:
            sys.exit("the moon is in the wrong house")
        return answers(what)

    return measure


# In a round there are nine measurements; three rounds, then the default training.
@pytest.mark.parametrize(("measured", "rounds"), [(27, 3), (26, 2), (9, 1)])
def test_throughput_keeps_rounds_when_later_part_fails(run_benchmark, measured, rounds):
    text = run_benchmark(throughput, "measure", exit_after(measured, FIGURES.get), "--rounds", "3")
    assert f"n = {rounds} rounds" in text
    assert "| optlab fp32 | 3000 (3000 – 3000) | 1.50 (1.50 – 1.50) |" in text
    assert "MLflow from its import to its last write): not measured." in text


def test_step_profile_excludes_backward_from_optimizer():
    """Forward and backward are called by the optimizer's step, and are not counted as a part of it."""
    parts = throughput.run_step("fp32")
    assert sum(parts.values()) == pytest.approx(1)
    assert all(share > 0 for share in parts.values())
    assert parts["convolution"] > parts["optimizer"] + parts["the rest"]


def test_throughput_without_complete_round_writes_no_page(run_benchmark):
    assert run_benchmark(throughput, "measure", exit_after(6, FIGURES.get)) is None


@pytest.mark.parametrize(("measured", "rounds", "rows"), [(3, "1", ["fp32"]), (7, "2 and 1", ["fp32", "bf16"])])
def test_side_by_side_keeps_rounds_when_later_fails(run_benchmark, monkeypatch, measured, rounds, rows):
    monkeypatch.setattr(side_by_side, "has_native_bf16", lambda _: True)
    text = run_benchmark(side_by_side, "seconds", exit_after(measured, lambda _: 10.0), "--rounds", "2")
    assert f"n = {rounds} rounds" in text
    assert [line.split()[1] for line in text.splitlines() if "10.0" in line] == rows
    assert ("bf16 was not measured." in text) == (rows == ["fp32"])


def test_stages_use_python_of_benchmark(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = subprocess.run(["python", "-c", "import sys; print(sys.prefix)"], env=needs.environment(),
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert found.stdout.strip() == sys.prefix


def test_missing_requirements_are_reported_before_measuring(tmp_path, monkeypatch):
    with pytest.raises(OptlabError, match="has no package no_such_package: run `pip install"):
        needs.check(("dvc", "no_such_package"))
    with pytest.raises(OptlabError, match="there is no command no-such-command, neither beside"):
        needs.check(("dvc",), ("optlab", "no-such-command"))
    (tmp_path / "params.yaml").write_bytes((needs.TOP / "params.yaml").read_bytes())
    monkeypatch.setattr(needs, "TOP", tmp_path)
    with pytest.raises(DataError, match="run `dvc repro download`"):
        needs.check(("dvc",), ("optlab",))


@pytest.mark.parametrize("benchmark", [throughput, side_by_side])
def test_benchmarks_check_requirements_first(benchmark, monkeypatch):
    def missing(*_):
        raise OptlabError("something is missing")

    monkeypatch.setattr(needs, "check", missing)
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    monkeypatch.setattr(benchmark, "measure" if benchmark is throughput else "seconds", lambda *_: sys.exit("measured"))
    with pytest.raises(OptlabError, match="something is missing"):
        benchmark.main()


def test_unmutated_params_are_accepted(monkeypatch):
    with bad_input.workplace():
        for text in bad_params.originals():
            assert bad_input.check_params(text.encode()) == bad_input.ACCEPTED


def test_class_report_lists_refused_classes_first(sample, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # it would outlive the test
    assert "schedulefree.AdamWScheduleFree" in classes.classes("schedulefree")
    assert "torch.optim.Adam" in classes.classes("torch.optim")  # a module of a package
    assert "torch.optim 2" in classes.report("torch.optim", [])
    trains = classes.tried({"class": "schedulefree.AdamWScheduleFree"}, sample)
    refused = classes.tried({"class": "torch.optim.Muon"}, sample)
    assert trains == "trains"
    assert refused.startswith("params.yaml: optimizers.mine: torch.optim.Muon refuses the model's ")
    rows = [({"class": "schedulefree.A"}, trains), ({"class": "schedulefree.B"}, refused)]
    text = classes.report("schedulefree", rows)
    assert "1 of 2 train" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("| ")] == ["class", "---", "B", "A"]


def test_catalog_page_has_other_rates_of_entries_far_below_adam(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog_entries, "MEASURED", tmp_path / "measured.json")
    sgd, adam, sam, _ = entries = [ready_entries.fill_in()[each] for each in ("sgd", "adam", "sam", "prodigy")]
    table = catalog_entries.Table(entries)

    def add(entry, accuracy, factor=1, seed=0):
        values = {"accuracy": accuracy, "loss": 1.25, "seconds": 2 * len(entry.name)}
        failure = None if accuracy else "diverged"
        table.measured[catalog_entries.Job(entry, seed, factor).key] = values | {"failure": failure}

    for entry, accuracy in zip(entries, (0.375, 0.5, 0.2, 0.125), strict=True):
        add(entry, accuracy)
    add(adam, 0.25, seed=1)
    assert [each.name for each in table.find_far_entries()] == ["sam"]  # 17.5 points below 37.5; Prodigy has no rate
    add(sam, 0.3, factor=10)
    add(sam, None, factor=100)
    add(sgd, None, seed=1)
    rows = [line for line in table.render().splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| adam | 0.001 | 37.5 % | 1.25 | 1.3 |  |",
        "| sam | 0.01 | 20.0 % | 1.25 | 1.0 | 30.0 % at 0.1 |",
        "| prodigy |  | 12.5 % | 1.25 | 2.3 |  |",
        "| sgd | 0.01 | diverged |  | 1.0 |  |",
    ]


def test_catalog_entry_is_trained_with_another_rate(sample, monkeypatch):
    data = {"dataset": "cifar10_sample", "train_size": 40, "validation_size": 20}
    monkeypatch.setitem(catalog_entries.SETTINGS, "data", data)
    monkeypatch.setitem(catalog_entries.SETTINGS["training"], "batch_size", 20)
    monkeypatch.setattr(catalog_entries, "SPLITS", [cifar10.load(sample, DataConfig(**data), 0)])
    job = catalog_entries.Job(ready_entries.fill_in()["lookahead"], 0, 10)
    assert job.values["base"]["lr"] == pytest.approx(0.01)
    _, measured = catalog_entries.train(job)
    assert 0 <= measured["accuracy"] <= 1 and measured["failure"] is None and measured["seconds"] > 0
    _, failed = catalog_entries.train(catalog_entries.Job(ready_entries.fill_in()["sgd"], 0, 1e9))
    assert (failed["accuracy"], failed["failure"]) == (None, "diverged")


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "equivalent"), (-0.003, "not shown to be equivalent")])
def test_bf16_report_tests_equivalence(tmp_path, monkeypatch, shift, verdict):
    """A difference of 0.3 points is above the margin; a diverged run and a seed of one precision are left out."""
    accuracies = 0.65 + 0.003 * np.random.default_rng(0).standard_normal((2, 35)) + [[0.0], [shift]]
    monkeypatch.setattr(bf16, "capture_environment", lambda _: Environment(cpu="AMD"))
    digests = {name: bf16.compute_digest(name) for name in bf16.PRECISIONS}
    runs = [
        {
            "precision": name,
            "seed": seed,
            "test_accuracy": accuracy,
            "status": "completed",
            "cpu": "AMD",
            "settings": digests[name],
        }
        for name, row in zip(bf16.PRECISIONS, accuracies.tolist(), strict=True)
        for seed, accuracy in enumerate(row)
    ]
    runs += [runs[0] | {"seed": 52} | other for other in ({"cpu": "Intel"}, {"settings": "of another params.yaml"})]
    runs += [runs[0] | {"seed": 50}, runs[0] | {"seed": 51, "status": "diverged", "test_accuracy": 0.1}]
    monkeypatch.setattr(bf16, "RUNS", tmp_path / "runs.jsonl")
    bf16.RUNS.write_text("".join(json.dumps(run) + "\n" for run in runs))
    text = bf16.report([1.5, 2.0, 2.5])
    assert f"in bf16 is {verdict} to that in fp32" in text
    assert "| bf16 | 35 |" in text and "| fp32 | 35 |" in text and "1 run diverged" in text and "Intel" not in text
    assert "is 2.00 times as fast" in text


def test_price_of_published_runs_is_computed_at_the_speed_of_their_network():
    """`fast` takes 0.3 PFLOP in 1,000 s, and airbench's runs 0.36 and 0.29; another network's speed does not count."""
    configs = [
        random_step.make_config(model, 250, {"muon": {"class": "SGD", "lr": 0.1}}) for model in ("zilliax", "fast")
    ]
    entries = [price.Entry(each, "muon", "92 %", "93 %", 0.3e15 / 45000) for each in configs]
    text = price.report(entries, [[900.0, 900.0, 900.0], [45.0, 30.0, 60.0]])
    assert "| fast | muon | 92 % | 93 % | 1 | 0.3000 | 16.7 (12.5 – 25.0) |" in text
    assert "| Nesterov | – | 94.01 % | – | 0.36 | about 20 (computed) |" in text
    assert "| Muon | – | 94.01 % | – | 0.29 | about 16 (computed) |" in text
    assert "computed for 300 GFLOP/s, the speed of the network `fast` here." in text
