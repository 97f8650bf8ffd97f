"""How often the verdicts are wrong, with seeds whose truth is known.

    python benchmarks/simulation.py        # writes benchmarks/SIMULATION.md

Accuracies are drawn from normal distributions with a standard deviation of one point, independent or correlated within
a seed, rounded to shares of 10,000 images, and compared as those of real runs are.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from needs import TOP

from optlab.analysis.paired_tests import ALPHA, PairedComparison, compare_pair

RESULTS = TOP / "benchmarks" / "SIMULATION.md"
SEEDS, CORRELATIONS = (2, 3, 5, 10), (0.0, 0.7)
IMAGES = 10_000  # whose share an accuracy is
MARGIN = 0.02  # wide enough for "equivalent" to be within reach of a few seeds
SEED = 2026


def drawn(n: int, correlation: float, means: Sequence[float], rounds: int) -> Iterator[list[list[float]]]:
    """Of each round, of each optimizer, its accuracy with each of n seeds."""
    random = np.random.default_rng([SEED, n, int(10 * correlation), len(means)])
    for _ in range(rounds):
        shared, own = random.normal(0, 1, (1, n)), random.normal(0, 1, (len(means), n))
        values = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
        yield (np.round((0.6 + np.array(means)[:, None] + 0.01 * values) * IMAGES) / IMAGES).tolist()


def compared(values: list[list[float]]) -> list[PairedComparison]:
    """Each optimizer with each."""
    both = list(itertools.combinations(values, 2))
    return [compare_pair(a, b, len(both), None, resolution=1 / IMAGES) for a, b in both]


def false_better(n: int, correlation: float, rounds: int, optimizers: int = 4) -> float:
    """The share of comparisons of four optimizers without a difference in which any is called better."""
    found = 0
    for values in drawn(n, correlation, [0.0] * optimizers, rounds):
        found += any(each.verdict == "better" for each in compared(values))
    return found / rounds


def missed(n: int, correlation: float, rounds: int) -> float:
    """The share of comparisons of three optimizers in which any interval does not hold the true difference."""
    means, found = [0.0, 0.01, 0.03], 0
    true = [a - b for a, b in itertools.combinations(means, 2)]
    for values in drawn(n, correlation, means, rounds):
        found += any(not each.low <= own <= each.high for each, own in zip(compared(values), true, strict=True))
    return found / rounds


def equivalent(n: int, correlation: float, difference: float, rounds: int) -> float:
    """The share in which two optimizers that differ so much are called equivalent within `MARGIN`."""
    said = [compare_pair(*values, 1, MARGIN).verdict for values in drawn(n, correlation, [difference, 0.0], rounds)]
    return said.count("equivalent") / rounds


def most(share: float, rounds: int) -> float:
    """The largest share of so many rounds that chance allows for that probability, at 3 standard deviations."""
    return share + 3 * math.sqrt(share * (1 - share) / rounds)


def report(rounds: int) -> str:
    """The table in markdown."""
    lines = [
        "# How often a verdict is wrong",
        "",
        f"`python benchmarks/simulation.py`: {rounds:,} simulated comparisons for each figure, whose seeds scatter by "
        f"one point around known means. Each of these shares should be {ALPHA:.0%} or less, beyond chance "
        f'({most(ALPHA, rounds):.1%}), but for the last column, which shows that "equivalent" is said at all.',
        "",
        '| seeds | correlation within a seed | any false "better" among four | any of three intervals misses its truth '
        '| "equivalent" at a difference of the margin | "equivalent" without a difference |',
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for n, correlation in itertools.product(SEEDS, CORRELATIONS):
        shares = (
            false_better(n, correlation, rounds), missed(n, correlation, rounds),
            equivalent(n, correlation, MARGIN, rounds), equivalent(n, correlation, 0.0, rounds),
        )  # fmt: skip
        lines.append(f"| {n} | {correlation:g} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000)
    text = report(parser.parse_args().rounds)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
