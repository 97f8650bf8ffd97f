"""The tutorial's claims, held against losses made up for the purpose."""

import importlib.util
import math
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("claims", Path(__file__).parents[1] / "tutorial" / "claims.py")
claims = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(claims)

FALLING = [300.0 - 10 * epoch for epoch in range(20)]
TURNING = [300.0 - 10 * min(epoch, 30 - epoch) for epoch in range(20)]  # lowest in the sixteenth epoch


def verdicts(sgd=FALLING, adam=tuple(value - 5 for value in FALLING), fast=TURNING, adamw=FALLING):
    found = claims.findings({"sgd": sgd, "adam": list(adam), "adam_fast": fast, "adamw": adamw})
    return [finding.verdict for finding in found]


CASES = {
    "adam is faster": ({}, ["does not hold", "holds", "cannot be told"]),
    "adam is slower at first": (
        {"adam": [400.0] + [1.0] * 19}, ["holds in 1 of 20 epochs", "holds", "cannot be told"]),
    "never unstable": ({"fast": FALLING}, ["does not hold", "does not hold", "cannot be told"]),
    "a little up at the end": (
        {"fast": [*FALLING[:16], 155.0, 156.0]}, ["does not hold", "does not hold", "cannot be told"]),
    "unstable in the fifth": (
        {"fast": [9.0, 8, 7, 6, 5] + [10.0] * 15}, ["does not hold", "unstable, but not there", "cannot be told"]),
    "infinite after the sixteenth": ({"fast": [*TURNING[:16], math.inf]}, ["does not hold", "holds", "cannot be told"]),
    "adam diverges at once": ({"adam": [math.inf]}, ["holds in 20 of 20 epochs", "holds", "cannot be told"]),
}  # fmt: skip


@pytest.mark.parametrize(("losses", "expected"), CASES.values(), ids=CASES)
def test_tutorial_claim_verdicts(losses, expected):
    assert verdicts(**losses) == expected


def test_tutorial_report_has_row_for_every_epoch():
    text = claims.report({"sgd": FALLING, "adam": FALLING, "adam_fast": FALLING[:3], "adamw": FALLING})
    assert "| 20 | 110 | 110 | – | 110 |" in text
