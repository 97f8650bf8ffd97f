"""What `optlab check` says about bf16: the time that it saves on this machine."""

import itertools
import os
import time
from pathlib import Path

import pytest

from optlab import cli
from optlab.orchestration import preflight_cache
from optlab.preflight import step_time
from optlab.records import Environment

TOP = Path(__file__).resolve().parents[1]


def test_steps_of_both_precisions_are_timed_in_turns(small_config, monkeypatch):
    """The median leaves out a slow first round. A range has a value, and a batch 256 images at most."""
    now, taken, prepared = [0.0], [], []
    seconds = {"fp32": itertools.chain([9.0], itertools.repeat(2.0)), "bf16": itertools.repeat(1.5)}

    def prepare_step(config, name):
        precision = config.training.precision
        prepared.append((precision, config.training.batch_size, name, config.get_optimizer(name).ranges))

        def step():
            taken.append(precision)
            now[0] += next(seconds[precision])

        return step

    monkeypatch.setattr(step_time, "prepare_step", prepare_step)
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: now[0])
    config = small_config(
        optimizers={"adam": {"class": "Adam", "lr": {"log": [0.001, 0.1]}}, "sgd": {"class": "SGD", "lr": 0.1}},
        data={"train_size": 400},
        training={"batch_size": 400},
    )
    assert step_time.measure_bf16_saving(config) == 0.25
    assert prepared == [("fp32", 256, "adam", {}), ("bf16", 256, "adam", {})]
    assert taken == ["fp32", "bf16"] * 3


def test_measured_steps_are_those_of_both_precisions(small_config, monkeypatch):
    monkeypatch.setattr(step_time, "_MEASURED_S", 0.0)
    assert step_time.measure_bf16_saving(small_config()) < 1
    losses = [
        step_time.prepare_step(small_config(training={"precision": precision}), "sgd")()
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


@pytest.mark.parametrize("error", [RuntimeError("not implemented for 'BFloat16'"), SystemExit(1)])
def test_class_that_fails_saves_nothing(small_config, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(step_time, "prepare_step", fail)
    assert step_time.measure_bf16_saving(small_config()) == 0


@pytest.mark.parametrize(
    ("native", "training", "measured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"precision": "bf16"}, False),
        (True, {"numerics": "portable"}, False),
    ],
)
def test_bf16_is_measured_only_where_it_could_be_used(small_config, monkeypatch, tmp_path, native, training, measured):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(step_time, "measure_bf16_saving", lambda _: 0.45)  # in the child, which is a fork
    preflight = preflight_cache.PreflightResult(warnings=[], environment=Environment(), has_native_bf16=native)
    saving = preflight_cache.load_or_measure_bf16_saving(small_config(training=training), preflight)
    assert saving == (0.45 if measured else 0)


def test_measurement_is_kept(small_config, monkeypatch, tmp_path):
    """With what was checked, and not where nothing was."""
    monkeypatch.chdir(tmp_path)
    config = small_config()
    unmeasured = preflight_cache.run_checks(config).model_copy(update={"has_native_bf16": True})
    monkeypatch.setattr(step_time, "measure_bf16_saving", lambda _: 0.0)
    assert preflight_cache.load_or_measure_bf16_saving(config, unmeasured) == 0
    kept = preflight_cache.load_cached(config)
    assert kept.bf16_saving == 0 and kept.environment == unmeasured.environment
    monkeypatch.setattr(step_time, "measure_bf16_saving", lambda _: 0.45)
    again = kept.model_copy(update={"has_native_bf16": True})
    assert preflight_cache.load_or_measure_bf16_saving(config, again) == 0
    other = small_config(training={"batch_size": 20})
    assert preflight_cache.load_or_measure_bf16_saving(other, unmeasured) == 0.45
    assert preflight_cache.load_cached(other) is None


@pytest.mark.parametrize("end", [lambda _: time.sleep(60), lambda _: os._exit(1)])
def test_measurement_that_does_not_end_well_saves_nothing(small_config, monkeypatch, tmp_path, end):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight_cache, "_MAX_MEASUREMENT_S", 1)
    monkeypatch.setattr(step_time, "measure_bf16_saving", end)
    preflight = preflight_cache.PreflightResult(warnings=[], environment=Environment(), has_native_bf16=True)
    assert preflight_cache.load_or_measure_bf16_saving(small_config(), preflight) == 0


def test_sentence_on_bf16_is_what_the_benchmark_found():
    sentence = cli._describe_bf16_saving("sgd", 0.449)
    assert "shortens a step of sgd by 45 % on" in sentence
    assert "for Adam on zilliax, the test accuracy is equivalent to that in fp32, within 0.25 points: " in sentence
    text = (TOP / "benchmarks" / "BF16.md").read_text("utf-8")
    assert "On zilliax, the test accuracy in bf16 is equivalent to that in fp32, within 0.25 points." in text
    assert "\nadam of params.yaml, " in text
