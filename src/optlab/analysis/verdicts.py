"""Verdicts of a comparison as sentences, and the format of means, differences and metric names in all texts.

All texts are in the language of `translation.use_language`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from optlab.analysis.comparison import Comparison, Row
from optlab.analysis.mean_ci import MeanCI, compute_mean_ci
from optlab.analysis.sequential import Pair, PairComparison
from optlab.analysis.translation import (
    join_clauses,
    join_items,
    join_names,
    join_phrases,
    translate,
    translate_count,
)

MAX_PAIRS_IN_TEXT = 6  # with more, the sentences summarize
_MAX_LISTED = 5  # pairs of one kind


@dataclass(frozen=True)
class Summary:
    """Verdict in words.

    Attributes:
        headline: the answer, one sentence.
        points: further statements, a sentence each.
        basis: metric, effort, and what the intervals hold for; empty where there is no verdict.
    """

    headline: str
    points: tuple[str, ...] = ()
    basis: str = ""

    @property
    def lines(self) -> list[str]:
        """All sentences, for a text: the points as a list."""
        return [self.headline, *(f"- {point}" for point in self.points), *filter(None, [self.basis])]


def summarize_verdicts(compared: Comparison) -> Summary:
    """Return the verdict in words."""
    completed = compared.completed
    if compared.champion is None:
        return Summary(translate("No run completed: there is nothing to choose."))
    if len(compared.rows) == 1 and completed:
        return Summary(_describe_only_optimizer(compared))
    if not compared.n_looks_taken:
        return _describe_before_first_look(compared)
    left_out = tuple(
        translate("No verdict on {name}: {status}.", name=row.optimizer, status=format_status(row))
        for row in compared.rows
        if not row.all_completed
    )
    if len(completed) < 2 or not compared.pairs:
        return Summary(_describe_no_pair(compared, completed), left_out)
    if compared.challenger:
        headline, points = _describe_challenger(compared)
    else:
        headline, points = _describe_lead(compared), [*_list_points(compared)]
    return Summary(headline, (*points, *left_out, *_describe_next_look(compared)), _describe_basis(compared))


def format_status(row: Row) -> str:
    """Return `completed`, `diverged`, or how many of an optimizer's runs diverged."""
    n, diverged = len(row.statuses), row.statuses.count("diverged")
    if 0 < diverged < n:
        return translate("{diverged} of {n} diverged", diverged=diverged, n=n)
    return translate("diverged" if diverged else "completed")


def _describe_no_pair(compared: Comparison, completed: list[str]) -> str:
    if compared.challenger and len(completed) > 1:
        return translate("No verdict: {name} did not complete all its runs.", name=compared.challenger)
    if completed:
        return translate("No verdict: only {name} completed all its runs.", name=completed[0])
    return translate("No verdict: no optimizer completed all its runs.")


def _describe_only_optimizer(compared: Comparison) -> str:
    (row,) = compared.rows
    by = compared.verdict_metric
    mean = format_mean(getattr(row, by), by)
    template = "{name} is the only optimizer: {metric} {mean}."
    return translate(template, name=row.optimizer, metric=format_metric_name(by), mean=mean)


def _describe_before_first_look(compared: Comparison) -> Summary:
    first, count = compared.plan.looks[0], compared.n
    if count == 1:
        why = translate("No verdict with one seed: a difference may come from the optimizers or from the seed.")
        return Summary(why, (translate("The first look is at {first} seeds: add seeds to params.yaml.", first=first),))
    template = "No verdict yet: there are {count} seeds, and the first look is at {first}."
    return Summary(translate(template, count=count, first=first))


def _describe_lead(compared: Comparison) -> str:
    """Return who is best, or why that is not known."""
    best, margin = compared.best, _format_margin(compared)
    if len(best) == 1:
        return _describe_winner(compared, best[0])
    if best:
        template = "{names} share the first place: they are equivalent within {margin}."
        if len(best) == len(compared.completed):
            template = "No difference that matters: {names} are equivalent within {margin}."
        return translate(template, names=join_names(best), margin=margin)
    if not any(pair.is_better for pair in compared.pairs.values()):
        template = "No winner yet: no optimizer is shown to be better than another with {seeds}."
        return translate(template, seeds=_format_n(compared))
    leader = next(iter(compared.unbeaten or compared.completed))  # verdicts of different looks can form a circle
    pairs = {name: get_pair(compared, leader, name) for name in compared.completed if name != leader}
    others = [name for name, pair in pairs.items() if not (pair.is_better and pair.first_is_better)]
    template = "No winner yet: {leader} leads, but is not shown to be better than {others}."
    return translate(template, leader=leader, others=join_names(others))


def _describe_winner(compared: Comparison, best: str) -> str:
    following = _find_next(compared, best)
    pair = get_pair(compared, best, following)
    template = "{best} wins: {value}, {lead} ahead of {after}."
    if pair.verdict != "better":
        template = "Too close to matter: {best}, with {value}, is {lead} ahead of {after}. The margin is {margin}."
    return translate(
        template,
        best=best,
        margin=_format_margin(compared),
        value=_format_value(compared, best),
        lead=_format_lead(pair, compared.verdict_metric),
        after=translate("{name}, the next", name=following)
        if len(compared.pairs) > 1
        else translate("{name}", name=following),
    )


def _find_next(compared: Comparison, best: str) -> str:
    """Return the optimizer with the best mean after the best one, of those with a verdict."""
    return next(name for name in compared.completed if name != best)


def _format_value(compared: Comparison, optimizer: str) -> str:
    """Return an optimizer's mean over the seeds that the verdicts use, without its interval."""
    return format_mean(compute_mean_ci([compared.compute_used_mean(optimizer)]), compared.verdict_metric)


def get_pair(compared: Comparison, first: str, second: str) -> PairComparison:
    """Return the comparison of two optimizers, the first named first."""
    return compared.pairs.get((first, second)) or compared.pairs[second, first].swap()


def _list_points(compared: Comparison) -> Iterator[str]:
    """Yield what the headline does not say: each pair, or a summary of many."""
    pairs = dict(compared.pairs)
    if len(pairs) <= MAX_PAIRS_IN_TEXT:
        if len(compared.best) == 1:  # the headline has the pair of the winner and the next
            shown = {compared.best[0], _find_next(compared, compared.best[0])}
            pairs = {names: pair for names, pair in pairs.items() if {*names} != shown}
        yield from (describe_pair(compared, names, pair) for names, pair in pairs.items())
        return
    margin = _format_margin(compared)
    for verdict, template in (
        ("undecided", "Undecided: {pairs}."),
        ("equivalent", "Equivalent within {margin}: {pairs}."),
        ("better, by less than the margin", "Better by less than {margin}: {pairs}."),
    ):
        listed = [_name_pair(names, pair) for names, pair in pairs.items() if pair.verdict == verdict]
        if listed:
            rest = len(listed) - _MAX_LISTED
            more = [translate("{count} more", count=rest)] if rest > 0 else []
            yield translate(template, margin=margin, pairs=join_items([*listed[:_MAX_LISTED], *more]))
    better = sum(pair.is_better for pair in pairs.values())
    template = "In {better} of {count} pairs one optimizer is better; the report lists all pairs."
    yield translate(template, better=better, count=len(pairs))


def _name_pair(names: Pair, pair: PairComparison) -> str:
    """Return both names, the better one first if there is one."""
    winner, loser = names if pair.first_is_better else names[::-1]
    return translate("{winner} than {loser}", winner=winner, loser=loser) if pair.is_better else join_names(names)


def describe_pair(compared: Comparison, names: Pair, pair: PairComparison) -> str:
    """Return the verdict on a pair as a sentence."""
    metric, margin = compared.verdict_metric, _format_margin(compared)
    if pair.is_better:
        winner, loser = names if pair.first_is_better else names[::-1]
        template = "{winner} is better than {loser}: {lead}."
        if pair.verdict != "better":
            template = "{winner} is better than {loser} by less than the margin of {margin}: {lead}."
        return translate(template, winner=winner, loser=loser, margin=margin, lead=_format_lead(pair, metric))
    template = "{names} are undecided: {difference}."
    if pair.verdict == "equivalent":
        template = "{names} are equivalent within {margin}: {difference}."
    return translate(template, names=join_names(names), margin=margin, difference=format_difference(pair, metric))


_CHALLENGER_VERDICTS = {  # in a count, and as the beginning of a list
    "better": ("better than {count}", "Better than: {others}."),
    "better, by less than the margin": (
        "better than {count} (by less than the margin)",
        "Better by less than {margin}: {others}.",
    ),
    "worse": ("worse than {count}", "Worse than: {others}."),
    "worse, by less than the margin": (
        "worse than {count} (by less than the margin)",
        "Worse by less than {margin}: {others}.",
    ),
    "equivalent": ("equivalent to {count}", "Equivalent to, within {margin}: {others}."),
    "undecided": ("undecided against {count}", "Undecided against: {others}."),
}


def _describe_challenger(compared: Comparison) -> tuple[str, list[str]]:
    """Return a count of the challenger's verdicts, and the optimizers of each verdict."""
    challenger, metric, margin = str(compared.challenger), compared.verdict_metric, _format_margin(compared)
    groups: dict[str, list[str]] = {how: [] for how in _CHALLENGER_VERDICTS}
    for (_, other), pair in compared.pairs.items():
        how = pair.verdict if pair.first_is_better else pair.verdict.replace("better", "worse")
        difference = format_difference(pair, metric)
        groups[how].append(translate("{name} ({difference})", name=other, difference=difference))
    found = {how: names for how, names in groups.items() if names}
    counts = [translate(_CHALLENGER_VERDICTS[how][0], count=len(names)) for how, names in found.items()]
    points = [
        translate(_CHALLENGER_VERDICTS[how][1], margin=margin, others=join_items(names)) for how, names in found.items()
    ]
    headline = translate(
        "{name} reaches {value}: it is {counts} of {optimizers}.",
        name=challenger,
        value=_format_value(compared, challenger),
        counts=join_clauses(counts),
        optimizers=translate_count(len(compared.pairs), "optimizer"),
    )
    return headline, points


def _describe_next_look(compared: Comparison) -> Iterator[str]:
    """Yield what further seeds can decide, where something is undecided or seeds are not used yet."""
    used, following = compared.n_used, compared.next_look
    if used < compared.n:
        template = "The verdict uses the first {used} of {n} seeds: no further look is planned."
        if following:
            template = "The verdict uses the first {used} of {n} seeds: the next look is at {next}."
        yield translate(template, used=used, n=compared.n, next=following)
    elif compared.undecided and following:
        template = "The next look is at {next} seeds: `optlab repro --until-decided` adds seeds and tests again."
        yield translate("The next look is at {next} seeds." if compared.challenger else template, next=following)
    elif compared.undecided:
        yield translate("This was the last planned look: further seeds do not change the verdicts.")


def _describe_basis(compared: Comparison) -> str:
    """Return metric, tuning effort, number of seeds, and what the intervals hold for."""
    looks, taken, attempt = compared.plan.looks, compared.n_looks_taken, compared.attempt
    held_for = ["pairs", *["looks"] * (len(looks) > 1), *["attempts"] * bool(attempt)]
    parts = [
        format_metric_name(compared.verdict_metric).capitalize(),
        *_describe_tuning_effort(compared),
        translate("{seeds} each", seeds=_format_n(compared))
        if len(looks) == 1
        else translate(
            "{seeds} each (look {taken} of {looks})", seeds=_format_n(compared), taken=taken, looks=len(looks)
        ),
    ]
    if attempt:
        template = "attempt {attempt} on these seeds (tested at 1/{share} of 5 %)"
        parts.append(translate(template, attempt=attempt, share=attempt * (attempt + 1)))
    template = "{parts}; 95 % intervals, simultaneous over all {held_for}."
    if any(pair.verdict == "equivalent" for pair in compared.pairs.values()) and len(compared.pairs) > 1:
        template = (
            "{parts}; 95 % intervals, simultaneous over all {held_for}; equivalence is tested for each pair alone."
        )
    return translate(template, parts=join_phrases(parts), held_for=join_names(map(translate, held_for)))


def _describe_tuning_effort(compared: Comparison) -> Iterator[str]:
    trials = {name: each.trials_per_search for name, each in compared.tunings.items()}
    if trials:
        per_seed = compared.config.tuning.per_seed
        everyone = (
            "{trials}{each} in a search for each seed" if per_seed else "{trials}{each} in one search for all seeds"
        )
        some = everyone.replace("{trials}", "{trials} of {names}")
        yield translate(
            everyone if len(trials) == len(compared.rows) else some,
            trials=translate_count(max(trials.values()), "tuning trial"),
            names=join_names(trials),
            each=translate(" each") if len(trials) > 1 else "",
        )


def _format_n(compared: Comparison) -> str:
    return translate("{n} seeds", n=compared.n_used)


def _format_margin(compared: Comparison) -> str:
    return translate("{value} points", value=f"{100 * compared.config.verdict.margin:g}")


def describe_champion(compared: Comparison) -> str:
    """Return which run `optlab predict` uses; the champion must not be None."""
    assert compared.champion is not None
    by = compared.selection_metric
    return translate(
        "`optlab predict` uses {run}, the run with the best {metric} ({best}); this is no verdict.",
        run=compared.champion.files.id,
        metric=format_metric_name(by),
        best=format_mean(compute_mean_ci([getattr(compared.champion.trained, by)]), by),
    )


def format_difference(pair: PairComparison, metric: str, with_unit: bool = True) -> str:
    """Return the difference with its interval, such as `−0.16 points (−1.69 to 1.37)`."""
    difference, low, high = (_format_number(each, metric) for each in (pair.difference, pair.low, pair.high))
    value = translate("{value} points", value=difference) if with_unit and "accuracy" in metric else difference
    return translate("{value} ({low} to {high})", value=value, low=low, high=high)


def _format_lead(pair: PairComparison, metric: str) -> str:
    """Return the difference in favour of the better one, with its interval: of losses, the worse less the better."""
    is_first_higher = pair.first_is_better == ("accuracy" in metric)
    return format_difference(pair if is_first_higher else pair.swap(), metric)


def _format_number(value: float, metric: str) -> str:
    scale, digits = (100, 2) if "accuracy" in metric else (1, 4)
    return f"{round(scale * value, digits) + 0.0:.{digits}f}".replace("-", "−")  # no -0.00


def format_mean(mean: MeanCI, metric: str) -> str:
    """Return a mean with its interval, if there is one, such as `61.94 ± 0.40 %`."""
    scale, digits, unit = (100, 2, " %") if "accuracy" in metric or "error" in metric else (1, 4, "")
    half = f" ± {scale * mean.half_width:.{digits}f}" if mean.half_width is not None else ""
    return f"{scale * mean.mean:.{digits}f}{half}{unit}"


def format_metric_name(key: str) -> str:
    """Return a metric's name for readers: `train_loss` becomes `training loss`."""
    return translate(key.replace("train_", "training_").replace("_", " "))
