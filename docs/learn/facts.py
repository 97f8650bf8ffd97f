"""Numbers and statements of the page, computed from the record."""

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
from landscape import Landscape

from optlab.analysis.comparison import Comparison
from optlab.analysis.tuning_results import OptimizerTuning, get_accuracy_or_chance, get_final_accuracy
from optlab.records import TrialRecord
from optlab.schema.parameters import SPLIT_SIZES

TOP = Path(__file__).resolve().parents[2]
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
    """What the searches of one optimizer say about its learning rate.

    Attributes:
        chosen: the rate that each search chose, in increasing order, and `chosen_accuracy` their mean accuracy.
        default, default_accuracy: the customary rate, and its mean accuracy over the searches.
    """

    chosen: list[float]
    chosen_accuracy: float
    default: float
    default_accuracy: float

    @classmethod
    def from_tuning(cls, tuning: OptimizerTuning) -> "RateSummary":
        """Summarize all searches of an optimizer."""
        chosen = [tuning.get_chosen_trial(search) for search in tuning.choices]
        defaults = [tuning.get_default_trial(search) for search in tuning.choices]
        rates = [[get_rate(tuning, trial) for trial in trials if trial] for trials in (chosen, defaults)]
        accuracies = [[get_accuracy_or_chance(trial) for trial in trials if trial] for trials in (chosen, defaults)]
        chosen_accuracy, default_accuracy = map(fmean, accuracies)
        return cls(sorted(map(float, rates[0])), chosen_accuracy, float(rates[1][0]), default_accuracy)

    @property
    def lost(self) -> float:
        """Accuracy that the default loses against the chosen rates."""
        return self.chosen_accuracy - self.default_accuracy


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
        "drawn": study.config.tuning.trials,
        "searches": len(study.tunings["sgd"].choices),
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
        **{key: text for name in ("sgd", "adam") for key, text in _describe_rates(name, rates[name]).items()},
        "sgd_diverged": rows["sgd"].statuses.count("diverged"),
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
        "sgd_rate": sgd.chosen[0] > 5 * sgd.default
        and sgd.lost > 0.1
        and _diverges_between(study.tunings["sgd"], sgd.chosen[0], 2 * sgd.chosen[-1]),
        "unstable": unstable == "holds",
        "robust": sgd.lost > 2 * adam.lost > 0.04,
        "slow": slow == "does not hold" and min(study.get_values("adam")) > max(study.get_values("sgd")),
        "overfitting": max(gap.values()) < 0.02 and not _is_decided(study, "adam", "adamw"),
    }


def _are_wrong_guesses_explained(study: Comparison) -> bool:
    """Return whether nine of ten wrong guesses are about close pairs or about optimizers that broke down."""
    deviations = {row.optimizer: np.std(study.get_values(row.optimizer)) for row in study.rows}
    broken = [name for name, own in deviations.items() if own > OUTLIER * np.median(list(deviations.values()))]
    wrong = {names: compute_wrong_shares(*(study.get_values(name) for name in names))[0] for names in study.pairs}
    explained = [
        share for names, share in wrong.items()
        if abs(study.pairs[names].difference) < CLOSE or set(broken) & set(names)
    ]  # fmt: skip
    return len(broken) > 1 and sum(explained) >= 0.9 * sum(wrong.values())


def _describe_rates(name: str, rates: RateSummary) -> dict[str, str]:
    return {
        f"{name}_default_accuracy": percent(rates.default_accuracy),
        f"{name}_chosen": " – ".join(f"{rate:.2g}" for rate in (rates.chosen[0], rates.chosen[-1])),
        f"{name}_chosen_accuracy": percent(rates.chosen_accuracy),
        f"{name}_loses": f"{100 * rates.lost:.0f}",
    }


def _diverges_between(tuning: OptimizerTuning, low: float, high: float) -> bool:
    rates = [get_rate(tuning, trial) for trial in tuning.trials if get_final_accuracy(trial) is None]
    return any(rate is not None and low < rate <= high for rate in rates)


def _find_pair(study: Comparison, first: str, second: str) -> Any:
    pair = study.pairs.get((first, second))
    return pair if pair else study.pairs[second, first].swap()


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
