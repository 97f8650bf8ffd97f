"""The committed study of ten optimizers by the present rules, without a training."""

from pathlib import Path

from optlab.analysis import comparison
from optlab.config import loader
from optlab.schema.parameters import PARAMS_FILE

STUDY = Path(__file__).resolve().parents[1] / "studies" / "optimizers"


def test_muon_is_told_from_the_steady_ones_with_five_searches_each():
    """NAdam's and Schedule-Free's runs differ by 16 and 46 points; one run of SGD diverged."""
    config = loader.load(STUDY / PARAMS_FILE)
    compared = comparison.collect(config, STUDY)
    assert (config.verdict.looks, compared.n, config.tuning.per_seed) == ([5, 8], 5, True)
    assert (len(compared.pairs), sum(pair.is_better for pair in compared.pairs.values())) == (36, 10)
    undecided = {names[1] for names, pair in compared.pairs.items() if names[0] == "muon" and not pair.is_better}
    assert undecided == {"nadam", "schedule_free"} and compared.best == []
    assert all(pair.wins == 5 for names, pair in compared.pairs.items() if names[0] == "muon")
