"""Numbers and statements of the page, computed from the record."""

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from landscape import Landscape

from optlab.analysis.comparison import Comparison
from optlab.analysis.tuning_results import OptimizerTuning, get_final_accuracy
from optlab.records import TrialRecord
from optlab.schema.parameters import SPLIT_SIZES

TOP = Path(__file__).resolve().parents[2]
NEAR_BEST = 0.02  # of accuracy: rates this close to the best are called good, as in docs/optimizers.md
MOST_SEEDS = 5  # after which a guess is judged
CLOSE = 0.01  # of accuracy: a difference of means below it
OUTLIER = 3  # times the median standard deviation over the seeds, of an optimizer that broke down with one


def import_claims() -> ModuleType:
    """Import tutorial/claims.py, which judges the tutorial's claims by its recorded losses."""
    spec = importlib.util.spec_from_file_location("claims", TOP / "tutorial" / "claims.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_rate(tuning: OptimizerTuning, trial: TrialRecord) -> float | None:
    """Return the learning rate of a trial: as recorded, or the entry's default; None if it is not known."""
    key = str(tuning.learning_rate_key)
    value = trial.values.get(key)
    return tuning.get_default_value(trial.search, key) if value is None and trial.index is None else value


@dataclass(frozen=True)
class RateSummary:
    """What the trials of one optimizer say about its learning rate.

    Attributes:
        best: the rate of the best sampled trial, and `best_accuracy` its accuracy.
        good: sampled rates within `NEAR_BEST` of the best, in increasing order.
        default, default_accuracy: of the trial with the customary rate.
    """

    best: float
    best_accuracy: float
    good: list[float]
    default: float
    default_accuracy: float

    @classmethod
    def from_tuning(cls, tuning: OptimizerTuning) -> "RateSummary":
        """Summarize the first search: later ones repeat it with other seeds."""
        first = min(tuning.choices)
        tried = [
            (rate, accuracy)
            for trial in tuning.sampled_trials
            if trial.search == first
            and (rate := get_rate(tuning, trial)) is not None
            and (accuracy := get_final_accuracy(trial)) is not None
        ]
        best, best_accuracy = max(tried, key=lambda each: each[1])
        default_trial = tuning.get_default_trial(first)
        default = default_trial and get_rate(tuning, default_trial)
        default_accuracy = default_trial and get_final_accuracy(default_trial)
        assert default is not None and default_accuracy is not None
        good = sorted(rate for rate, accuracy in tried if accuracy > best_accuracy - NEAR_BEST)
        return cls(best, best_accuracy, good, default, default_accuracy)


def compute_wrong_shares(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return how often a guess after k seeds names the other optimizer than the mean of all seeds does.

    The guess is the optimizer with the higher mean over the k seeds; a tie is wrong by half. Each subset of k seeds
    counts once.

    Args:
        first, second: accuracies, one for each seed, in the same order of the seeds.

    Returns:
        Shares, from 0 to 1, for k = 1 … min(`MOST_SEEDS`, number of seeds - 1).
    """
    differences = np.subtract(first, second)
    sign = np.sign(differences.mean())
    return [
        float(np.mean([(1 - sign * np.sign(differences[list(subset)].mean().round(12))) / 2 for subset in subsets]))
        for k in range(1, min(MOST_SEEDS, len(differences) - 1) + 1)
        for subsets in [list(itertools.combinations(range(len(differences)), k))]
    ]


def compute_facts(study: Comparison, tutorial: Comparison, landscape: Landscape) -> dict[str, str]:
    """Return the numbers in the texts, by the names that the texts have for them."""
    rates = {name: RateSummary.from_tuning(tuning) for name, tuning in study.tunings.items()}
    losses = {name: import_claims().running_losses(TOP / "tutorial", name) for name in tutorial.config.optimizers}
    fast, states = losses["adam_fast"], {state.name: state for state in landscape.states}
    rows = {row.optimizer: row for row in study.rows}
    wrong = [
        compute_wrong_shares(study.get_values(first), study.get_values(second))[0] for first, second in study.pairs
    ]
    lowest = min(range(len(fast)), key=fast.__getitem__)
    shown = {
        "epochs": study.config.training.epochs,
        "training_images": f"{study.config.data.train_size:,}",
        "validation_images": f"{study.config.data.validation_size:,}",
        "test_images": f"{SPLIT_SIZES[study.config.data.dataset]['test']:,}",
        "tutorial_images": f"{tutorial.config.data.train_size:,}",
        "drawn": len(study.tunings["sgd"].sampled_trials),
        "seeds": study.n,
        "optimizers": len(study.rows),
        "pairs": len(study.pairs),
        "wrong_all": percent(float(np.mean(wrong))),
        "grid": len(landscape.losses),
        "images": f"{landscape.images:,}",
        "steps": landscape.steps,
        **{f"{name}_loss": f"{state.loss:.2f}" for name, state in states.items()},
        "tutorial_epochs": len(losses["sgd"]),
        "sgd_first": f"{losses['sgd'][0]:.1f}",
        "sgd_last": f"{losses['sgd'][-1]:.1f}",
        "adam_last": f"{losses['adam'][-1]:.1f}",
        "adamw_last": f"{losses['adamw'][-1]:.1f}",
        "fast_lowest_epoch": lowest + 1,
        "fast_lowest": f"{fast[lowest]:.1f}",
        "fast_peak": f"{float(f'{max(fast[lowest:]):.3g}'):,.0f}",
        "fast_peak_epoch": fast.index(max(fast[lowest:])) + 1,
        "sgd_default_accuracy": percent(rates["sgd"].default_accuracy),
        "sgd_small_accuracy": percent(_nearest_accuracy(study.tunings["sgd"], 0.001)),
        "sgd_best": f"{rates['sgd'].best:.2g}",
        "sgd_best_accuracy": percent(rates["sgd"].best_accuracy),
        "sgd_loses": f"{100 * (rates['sgd'].best_accuracy - rates['sgd'].default_accuracy):.0f}",
        "adam_best": f"{rates['adam'].best:.2g}",
        "adam_best_accuracy": percent(rates["adam"].best_accuracy),
        "adam_default_accuracy": percent(rates["adam"].default_accuracy),
        "adam_loses": f"{100 * (rates['adam'].best_accuracy - rates['adam'].default_accuracy):.0f}",
        "adam_good": " – ".join(f"{rate:.2g}" for rate in (rates["adam"].good[0], rates["adam"].good[-1])),
        "adam_ahead": f"{100 * (rows['adam'].test_accuracy.mean - rows['sgd'].test_accuracy.mean):.1f}",
        "adam_train_loss": f"{rows['adam'].train_loss.mean:.3f}",
        "adam_test_loss": f"{rows['adam'].test_loss.mean:.3f}",
        "adamw_train_loss": f"{rows['adamw'].train_loss.mean:.3f}",
        "adamw_test_loss": f"{rows['adamw'].test_loss.mean:.3f}",
        "adamw_pair": format_pair(study, "adam", "adamw"),
    }
    return {name: str(value) for name, value in shown.items()}


def check_statements(study: Comparison, tutorial: Comparison) -> dict[str, bool]:
    """Return for each statement of the texts, by the key of the text or the id of the claim, whether the record
    supports it.
    """
    claims = import_claims()
    losses = {name: claims.running_losses(TOP / "tutorial", name) for name in tutorial.config.optimizers}
    slow, unstable = (finding.verdict for finding in claims.findings(losses)[:2])
    rates = {name: RateSummary.from_tuning(tuning) for name, tuning in study.tunings.items()}
    sgd, adam = rates["sgd"], rates["adam"]
    rows = {row.optimizer: row for row in study.rows}
    gap = {name: rows[name].test_loss.mean - rows[name].train_loss.mean for name in ("adam", "adamw")}
    return {
        "wrong_lead": _are_wrong_guesses_explained(study),
        "stuck": all(later < earlier for earlier, later in itertools.pairwise(losses["sgd"])),
        "sgd_rate": sgd.best > 5 * sgd.default
        and sgd.best_accuracy > sgd.default_accuracy + 0.1
        and _diverges_between(study.tunings["sgd"], sgd.best, 2 * sgd.best),
        "unstable": unstable == "holds",
        "robust": sgd.best_accuracy - sgd.default_accuracy > 2 * (adam.best_accuracy - adam.default_accuracy)
        and adam.good[-1] / adam.good[0] >= 3
        and adam.best_accuracy - adam.default_accuracy > NEAR_BEST,
        "slow": slow == "does not hold" and _is_better(study, "adam", "sgd"),
        "overfitting": abs(gap["adam"]) < 0.02 and abs(gap["adamw"]) < 0.02 and not _is_decided(study, "adam", "adamw"),
    }


def _are_wrong_guesses_explained(study: Comparison) -> bool:
    """Return whether nine of ten wrong guesses are about close pairs or about the one optimizer that broke down."""
    deviations = {row.optimizer: np.std(study.get_values(row.optimizer)) for row in study.rows}
    broken = [name for name, own in deviations.items() if own > OUTLIER * np.median(list(deviations.values()))]
    wrong = {names: compute_wrong_shares(*(study.get_values(name) for name in names))[0] for names in study.pairs}
    explained = [
        share for names, share in wrong.items()
        if abs(study.pairs[names].difference) < CLOSE or set(broken) & set(names)
    ]  # fmt: skip
    return len(broken) == 1 and sum(explained) >= 0.9 * sum(wrong.values())


def _nearest_accuracy(tuning: OptimizerTuning, rate: float) -> float:
    """Return the accuracy of the trial whose rate is nearest, in ratio; chance where it diverged."""
    known = [(each, get_rate(tuning, each)) for each in tuning.trials]
    trial = min((abs(np.log(value / rate)), number) for number, (_, value) in enumerate(known) if value)[1]
    accuracy = get_final_accuracy(known[trial][0])
    return 0.1 if accuracy is None else accuracy


def _diverges_between(tuning: OptimizerTuning, low: float, high: float) -> bool:
    rates = [get_rate(tuning, trial) for trial in tuning.trials if get_final_accuracy(trial) is None]
    return any(rate is not None and low < rate <= high for rate in rates)


def _find_pair(study: Comparison, first: str, second: str) -> Any:
    pair = study.pairs.get((first, second))
    return pair if pair else study.pairs[second, first].swap()


def _is_better(study: Comparison, first: str, second: str) -> bool:
    pair = _find_pair(study, first, second)
    return bool(pair.is_better and pair.first_is_better)


def _is_decided(study: Comparison, first: str, second: str) -> bool:
    return bool(_find_pair(study, first, second).verdict != "undecided")


def format_pair(study: Comparison, first: str, second: str) -> str:
    """Return the difference of two optimizers in points with its interval, as `0.36 (−0.71 to 1.43)`."""
    pair = _find_pair(study, first, second)
    points = [f"{100 * value:.2f}".replace("-", "−") for value in (pair.difference, pair.low, pair.high)]
    return f"{points[0]} ({points[1]} … {points[2]})"


def percent(fraction: float) -> str:
    """Return a share in per cent, with one decimal place."""
    return f"{100 * fraction:.1f} %"
