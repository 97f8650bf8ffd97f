"""The learning-rate factors are those of torch.optim.lr_scheduler, step for step."""

import warnings

import pytest
import torch
from pydantic import TypeAdapter
from torch.optim import lr_scheduler

from optlab.schema.optimizer import Schedule
from optlab.training.schedules import compute_lr_factor

STEPS, EPOCHS = 10, 6
TOTAL = STEPS * EPOCHS


def schedule(**values):
    return TypeAdapter(Schedule).validate_python(values)


def compute_factors(steps=STEPS, epochs=EPOCHS, **values):
    return [compute_lr_factor(schedule(**values), step, steps, epochs) for step in range(steps * epochs)]


def compute_torch_factors(make, total=TOTAL):
    """What torch's scheduler multiplies a learning rate of 1 by, at each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls its parts in a way that they themselves warn of
        scheduler, factors = make(optimizer), []
        for _ in range(total):
            factors.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return factors


def one_cycle(rise):
    return lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=TOTAL, pct_start=rise, cycle_momentum=False
    )


def chain_warmup(warmup, then):
    """torch's linear warm-up over that many steps, then another scheduler."""

    def make(optimizer):
        rise = lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
        return lr_scheduler.SequentialLR(optimizer, [rise, then(optimizer)], [warmup])

    return make


SAME = {
    "constant": ({"name": "constant"}, lambda each: lr_scheduler.ConstantLR(each, factor=1.0)),
    "cosine": ({"name": "cosine"}, lambda each: lr_scheduler.CosineAnnealingLR(each, TOTAL)),
    "step": (
        {"name": "step", "step_epochs": 2, "gamma": 0.5},
        lambda each: lr_scheduler.StepLR(each, 2 * STEPS, gamma=0.5),
    ),
    "step by default": (
        {"name": "step", "step_epochs": 1},
        lambda each: lr_scheduler.StepLR(each, STEPS, gamma=0.1),
    ),
    "one cycle": ({"name": "one_cycle"}, one_cycle(0.3)),
    "one cycle with its rise": ({"name": "one_cycle", "warmup_epochs": 3}, one_cycle(3 / EPOCHS)),
    "warm-up": (
        {"name": "constant", "warmup_epochs": 2},
        lambda each: lr_scheduler.LinearLR(each, 1 / (2 * STEPS), 1.0, total_iters=2 * STEPS - 1),
    ),
    "warm-up of half an epoch": (
        {"name": "constant", "warmup_epochs": 0.5},
        lambda each: lr_scheduler.LinearLR(each, 1 / 5, 1.0, total_iters=4),
    ),
    "warm-up, then cosine": (
        {"name": "cosine", "warmup_epochs": 1},
        chain_warmup(STEPS, lambda each: lr_scheduler.CosineAnnealingLR(each, TOTAL - STEPS)),
    ),
}


@pytest.mark.parametrize(("values", "make"), SAME.values(), ids=SAME)
def test_schedule_factors_match_torch_schedulers(values, make):
    assert compute_factors(**values) == pytest.approx(compute_torch_factors(make), rel=1e-9, abs=1e-12)


ALL = {
    "constant": {"name": "constant"},
    "cosine": {"name": "cosine"},
    "one_cycle": {"name": "one_cycle"},
    "step": {"name": "step", "step_epochs": 1, "gamma": 0.5},
}


# One step in all is the smallest run; 13 steps an epoch fall between the edges of every phase.
@pytest.mark.parametrize("warmup", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 1), (13, 3)], ids=str)
@pytest.mark.parametrize("values", ALL.values(), ids=ALL)
def test_schedule_factors_lie_in_unit_interval(values, size, warmup):
    factors = compute_factors(*size, **values, warmup_epochs=warmup)
    assert all(0 < value <= 1 for value in factors)


@pytest.mark.parametrize("values", ALL.values(), ids=ALL)
def test_warmup_rises_to_configured_rate(values):
    factors = compute_factors(**values, warmup_epochs=1)
    assert factors[:STEPS] == sorted(set(factors[:STEPS]))
    assert max(factors) == pytest.approx(1)


def test_linear_warmup_has_expected_factors():
    factors = compute_factors(steps=4, epochs=2, name="constant", warmup_epochs=1)
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_cosine_schedule_has_expected_factors():
    assert compute_factors(steps=4, epochs=1, name="cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_one_cycle_ends_at_torch_final_factor():
    assert compute_factors(name="one_cycle")[-1] == pytest.approx(1 / 25 / 1e4)


def test_warmup_below_half_step_lasts_one_step():
    """It is not that of `warmup_epochs: 0`, which `one_cycle` has for 30 % of the run."""
    short = compute_factors(name="one_cycle", warmup_epochs=0.04)
    assert short[0] == 1.0 and short == sorted(short, reverse=True)
    assert compute_factors(name="cosine", warmup_epochs=0.04)[:2] == [1.0, 1.0]
