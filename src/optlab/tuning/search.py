"""Which trials are trained, how far each goes, and which is chosen: no training happens here.

Trials begin together. After a part of the steps the best go on, and the others stop: successive halving (Jamieson and
Talwalkar 2016), synchronous, so that nothing depends on which trial ends first. Where the best of the first three
quarters lies at the edge of a range on the logarithmic scale, the last quarter is drawn in the decade beyond it.
"""

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from optlab.config.parameters import Sensitivity, Tuning
from optlab.config.ranges import Interval, Range
from optlab.record.contents import Validation
from optlab.tuning import points

DEFAULT = -1  # the index of the entry's default among the trials

Ending = Literal["diverged", "failed"]


@dataclass
class Trial:
    """One point of the ranges, and what became of it.

    Attributes:
        values: of the ranges; empty for the default.
        beyond: the ranges whose value was drawn beyond their edge.
        looks: at the validation split, where it was to go on or not.
        ending: why it went no further, where that was its own doing.
        sought: the step that it was to reach then.
    """

    study: int
    index: int
    seed: int
    values: dict[str, Any]
    beyond: list[str] = field(default_factory=list)
    looks: list[Validation] = field(default_factory=list)
    ending: Ending | None = None
    sought: int | None = None

    @property
    def rank(self) -> tuple[float, float, int]:
        """The smaller, the better, among trials that went equally far: by accuracy, then loss, then index."""
        last = self.looks[-1]
        assert last.accuracy is not None and last.loss is not None
        return -last.accuracy, last.loss, self.index


Tasks = list[tuple[Trial, int]]  # trials to be trained up to a step, at once or in any order
Told = list[Validation | Ending]  # what came of each
Search = Generator[Tasks, Told, None]


def rungs(steps: int, halving: int) -> list[int]:
    """After how many steps it is decided who goes on: a sixteenth, a quarter and all of them where `halving` is 4."""
    return sorted({math.ceil(steps / halving**power) for power in (2, 1, 0)})


def cost(tuning: Tuning, steps: int) -> int:
    """The steps of one study, if nothing diverges."""
    total, last = steps, tuning.trials // 4
    for going in (tuning.trials - last, last):
        before = 0
        for end in rungs(steps, tuning.halving) if going else ():
            total += going * (end - before)
            going, before = max(1, math.ceil(going / tuning.halving)), end
    return total


def study(number: int, ranges: dict[str, Range], tuning: Tuning, steps: int, seeds: list[int],
          trials: list[Trial]) -> Search:  # fmt: skip
    """One tuning: yields what is to be trained, is sent what came of it, and adds to `trials`.

    Args:
        number: of the study.
        steps: of a whole training.
        seeds: of the runs that confirm what is chosen.
    """

    def trial(index: int, beyond: dict[str, int] | None = None) -> Trial:
        own = points.training_seed("trial", tuning.seed, number, index, seeds)
        place = points.point(tuning.seed, number, index) if index != DEFAULT else ()
        drawn = points.values(ranges, place, beyond) if index != DEFAULT else {}
        trials.append(Trial(number, index, own, drawn, sorted(beyond or {})))
        return trials[-1]

    ends = rungs(steps, tuning.halving)
    default = [(trial(DEFAULT), steps)]
    last = tuning.trials // 4
    first = [trial(index) for index in range(tuning.trials - last)]
    yield from _bracket(first, ends, tuning.halving, beside=default)
    beyond = edges(ranges, best(first, steps)) if last else {}
    rest = [trial(index, beyond) for index in range(tuning.trials - last, tuning.trials)]
    yield from _bracket(rest, ends, tuning.halving)


def learning_rate(ranges: dict[str, Range]) -> str | None:
    """The range that is the learning rate's: the entry's own, or that of what it wraps."""
    return next((key for key in ("lr", "base.lr") if isinstance(ranges.get(key), Interval)), None)


def sensitivity(key: str, chosen: Trial, grid: Sensitivity, tuning: Tuning, steps: int, seeds: list[int],
                trials: list[Trial]) -> Search:  # fmt: skip
    """A grid over one value, the rest as chosen, each point with several seeds; otherwise as `study`.

    Args:
        key: whose value it is.
        chosen: the values in the middle.
    """
    for index in range(grid.points):
        exponent = grid.decades * (index / (grid.points - 1) - 0.5)
        values = chosen.values | {key: float(f"{chosen.values[key] * 10**exponent:.6g}")}
        for each in range(grid.seeds):
            own = points.training_seed("sensitivity", tuning.seed, 0, each, seeds)
            trials.append(Trial(0, index, own, values))
    yield from _train([(each, steps) for each in trials])


def _bracket(going: list[Trial], ends: list[int], halving: int, beside: Tasks | None = None) -> Search:
    for number, end in enumerate(ends):
        yield from _train([*((each, end) for each in going), *((beside or []) if number == 0 else [])])
        fine = sorted((each for each in going if each.ending is None), key=lambda each: each.rank)
        going = fine[: max(1, math.ceil(len(going) / halving))] if number + 1 < len(ends) else fine


def _train(tasks: Tasks) -> Search:
    if tasks:
        told = yield tasks
        for (trial, until), what in zip(tasks, told, strict=True):
            if isinstance(what, Validation):
                trial.looks.append(what)
            else:
                trial.ending, trial.sought = what, until


def best(trials: Iterable[Trial], steps: int) -> Trial | None:
    """The best of those that were trained to the end; None where there is none."""
    whole = [each for each in trials if each.ending is None and each.looks and each.looks[-1].step == steps]
    return min(whole, key=lambda each: each.rank, default=None)


def edges(ranges: dict[str, Range], found: Trial | None) -> dict[str, int]:
    """The ranges at whose edge a trial's value lies, and at which of the two: a value beyond one lies at its edge."""
    if found is None or not found.values:
        return {}
    logarithmic = {key: each for key, each in ranges.items() if isinstance(each, Interval)}
    all_of_them = {key: each.edge(found.values[key]) for key, each in logarithmic.items()}
    return {key: edge for key, edge in all_of_them.items() if edge}


def still_at_edge(ranges: dict[str, Range], found: Trial, trials: Iterable[Trial]) -> list[str]:
    """The ranges at whose edge the chosen value lies, widened by the decade that any of the trials was drawn in."""
    drawn = [each for each in trials if each.values]
    still = []
    for key in edges(ranges, found):
        own = ranges[key]
        assert isinstance(own, Interval)
        beyond = [each.values[key] for each in drawn if key in each.beyond]
        low = own.decade_beyond(-1).low if any(value < own.low for value in beyond) else own.low
        high = own.decade_beyond(1).high if any(value > own.high for value in beyond) else own.high
        if Interval(scale="log", low=low, high=high).edge(found.values[key]):
            still.append(key)
    return still
