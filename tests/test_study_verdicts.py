"""The committed study of ten optimizers by the present rules, without a training."""

from pathlib import Path

from optlab.analysis import comparison
from optlab.config import loader
from optlab.schema.parameters import PARAMS_FILE

STUDY = Path(__file__).resolve().parents[1] / "studies" / "optimizers"


def test_ten_optimizers_are_told_with_one_look_at_eight_seeds():
    """The paired t test with Bonferroni's correction told 35 of the 45 pairs, and not Muon from NAdam."""
    config = loader.load(STUDY / PARAMS_FILE)
    compared = comparison.collect(config, STUDY)
    assert config.verdict.looks == [8]
    pairs = {frozenset(names): pair for names, pair in compared.pairs.items()}
    assert sum(pair.is_better for pair in pairs.values()) == 36
    assert pairs[frozenset(["lion", "schedule_free"])].verdict == "equivalent"
    muon = pairs[frozenset(["muon", "nadam"])]
    assert (muon.verdict, 0.016 < muon.p < 0.018) == ("better", True)
    assert compared.best == ["muon"]
