"""Verdicts of a comparison as sentences, and the format of means, differences and metric names in all texts."""

from collections.abc import Iterable

from optlab.analysis.comparison import Comparison
from optlab.analysis.paired_tests import MeanCI, PairedComparison, compute_mean_ci
from optlab.schema.parameters import format_count

_ONE_SEED_MESSAGE = (
    "With one seed each, the optimizers' part in a difference cannot be told from the seeds': there is no verdict, and "
    "the table is in the order of params.yaml. Add seeds there"
)
MAX_PAIRS_IN_TEXT = 6  # with more, the sentences summarize
_MAX_LISTED_WINNERS = 4  # with more, only their number is given


def summarize_verdicts(compared: Comparison) -> str:
    """Return a few sentences; the first names the better optimizers, if there are any."""
    if compared.champion is None:
        return "No run completed: there is nothing to choose."
    completed = [row.optimizer for row in compared.rows if row.all_completed]
    if len(compared.rows) == 1 and completed:
        sentences = [_describe_only_optimizer(compared)]
    elif compared.n == 1:
        sentences = [_ONE_SEED_MESSAGE]
    elif len(completed) < 2:
        who = f"Only {completed[0]} completed all its runs" if completed else "No optimizer completed all its runs"
        sentences = [f"{who}, so there is no verdict"]
    elif compared.challenger:
        sentences = [_describe_challenger(compared)]
    else:
        sentences = _describe_pairs(compared, completed)
    left_out = [
        f"{row.optimizer} ({row.status})"
        for row in compared.rows
        if not row.all_completed and row.optimizer != compared.challenger
    ]
    if left_out and len(completed) > 1 and compared.n > 1:
        sentences.append(f"There is no verdict on {_join_names(left_out)}")
    if not compared.challenger:  # the champion may be a run in the study's folder
        sentences.append(_describe_champion(compared))
    return " ".join(f"{sentence}." for sentence in sentences)


def _describe_only_optimizer(compared: Comparison) -> str:
    (row,) = compared.rows
    by = compared.verdict_metric
    return f"{row.optimizer} is the only optimizer: {format_metric_name(by)} {format_mean(getattr(row, by), by)}"


def _describe_champion(compared: Comparison) -> str:
    assert compared.champion is not None
    run, by = compared.champion.files.id, compared.selection_metric
    best = format_mean(compute_mean_ci([getattr(compared.champion.trained, by)]), by)
    name = format_metric_name(by)
    return f"The run with the best {name} is {run}, {best}: it is what `optlab predict` uses, and no verdict"


def _describe_pairs(compared: Comparison, completed: list[str]) -> list[str]:
    pairs = compared.pairs
    beaten: dict[str, list[tuple[str, PairedComparison]]] = {}
    for (first, second), pair in pairs.items():
        if pair.is_significant:
            winner, loser = (first, second) if pair.first_is_better else (second, first)
            beaten.setdefault(loser, []).append((winner, pair))
    if len(pairs) > MAX_PAIRS_IN_TEXT:
        sentences = _summarize_pairs(compared, beaten, completed)
    else:
        sentences = [_describe_better(compared, loser, winners) for loser, winners in beaten.items()]
        sentences += [
            _describe_not_better(compared, names, pair) for names, pair in pairs.items() if not pair.is_significant
        ]
    sentences[0] += f" ({_describe_basis(compared)})"
    return sentences


def _summarize_pairs(
    compared: Comparison, beaten: dict[str, list[tuple[str, PairedComparison]]], completed: list[str]
) -> list[str]:
    """Return two sentences: the unbeaten optimizers, or the lead of one; and the winners over each beaten optimizer."""
    unbeaten = [name for name in completed if name not in beaten]
    wins = {name: sum(name == winner for each in beaten.values() for winner, _ in each) for name in unbeaten}
    best = max(unbeaten, key=wins.__getitem__)
    if any(2 * wins[name] >= wins[best] for name in unbeaten if name != best):
        first, intro = f"Not beaten by any other: {_join_names(unbeaten)}", "Beaten"
    else:
        first, intro = f"{best} is better than {_describe_lead(compared, best, completed)}", "Beaten among these"
        completed = [name for name in completed if name != best]
        beaten = {loser: [each for each in winners if each[0] != best] for loser, winners in beaten.items()}
    rest = [
        f"{loser} by {_format_winners([name for name, _ in each], completed)}" for loser, each in beaten.items() if each
    ]
    every = "every pair is in reports/pairs.csv"
    return [first, f"{intro}: {'; '.join([*rest, every])}" if rest else every.capitalize()]


def _describe_lead(compared: Comparison, best: str, completed: list[str]) -> str:
    """Return the optimizers that `best` beats, the undecided ones, and its smallest and largest lead."""
    pairs = {(set(names) - {best}).pop(): pair for names, pair in compared.pairs.items() if best in names}
    differences = {name: format_difference(pair, compared.verdict_metric, sign=False) for name, pair in pairs.items()}
    undecided = [
        f"{name} ({differences[name]})" for name in completed if name != best and not pairs[name].is_significant
    ]
    decided = sorted(
        (name for name in pairs if pairs[name].is_significant), key=lambda name: abs(pairs[name].difference)
    )
    ends = " to ".join(f"{differences[name]} ({name})" for name in (decided[0], decided[-1]))
    return f"all others{' but ' + _join_names(undecided) if undecided else ''}, by {ends}"


def _describe_challenger(compared: Comparison) -> str:
    """Return the challenger's verdict against each other optimizer, grouped by verdict."""
    groups: dict[str, list[str]] = {}
    for (_, other), pair in compared.pairs.items():
        difference = format_difference(pair, compared.verdict_metric)
        if pair.is_significant:
            how = "better than" if pair.first_is_better else "worse than"
        elif pair.verdict == "equivalent":
            how = f"equivalent, within {100 * compared.config.verdict.margin:g} points, to"
        else:
            how = "not to be told apart from"
        groups.setdefault(how, []).append(f"{other} ({difference})")
    if not groups:
        return f"{compared.challenger} has not completed all its runs, so there is no verdict"
    verdicts = "; ".join(f"{how} {_join_names(names)}" for how, names in groups.items())
    return f"{compared.challenger} is {verdicts} ({_describe_basis(compared)})"


def _format_winners(winners: list[str], completed: list[str]) -> str:
    if len(winners) > _MAX_LISTED_WINNERS:
        return "all others" if len(winners) == len(completed) - 1 else f"{len(winners)} others"
    return _join_names(winners)


def _describe_basis(compared: Comparison) -> str:
    """Return metric, tuning effort and n of the differences."""
    return (
        f"{format_metric_name(compared.verdict_metric)}, {_describe_tuning_effort(compared)}n = {compared.n} "
        f"{compared.replicate_name}, ± 95 %"
    )


def _describe_tuning_effort(compared: Comparison) -> str:
    trials = {name: len(each.sampled_trials) // len(each.choice.studies) for name, each in compared.tunings.items()}
    if not trials:
        return ""
    most = max(trials.values())
    who = "" if len(trials) == len(compared.rows) else f"{_join_names(trials)} "
    return f"{who}tuned, {format_count(most, 'trial')}{' each' if len(trials) > 1 else ''}, "


def _describe_better(compared: Comparison, loser: str, winners: list[tuple[str, PairedComparison]]) -> str:
    differences = _join_names(
        format_difference(pair, compared.verdict_metric, sign=False)
        + (" (less than the margin)" if pair.verdict != "better" else "")
        for _, pair in winners
    )
    names = [name for name, _ in winners]
    return f"{_join_names(names)} {'are' if len(names) > 1 else 'is'} better than {loser}, by {differences}"


def _describe_not_better(compared: Comparison, names: tuple[str, str], pair: PairedComparison) -> str:
    margin = f"{100 * compared.config.verdict.margin:g} points"
    difference = format_difference(pair, compared.verdict_metric)
    if pair.verdict == "equivalent":
        return f"{_join_names(names)} are equivalent within {margin}: {difference}"
    sentence = f"{_join_names(names)} cannot be told apart with {pair.n} {compared.replicate_name}: {difference}"
    if pair.needed is not None and compared.verdict_metric == "test_accuracy":
        sentence += f"; a difference of {margin} would need {pair.needed:,} {compared.replicate_name}"
    return sentence


def format_difference(pair: PairedComparison, metric: str, sign: bool = True) -> str:
    """Return the difference with its interval, such as `−0.16 ± 1.53 points`."""
    size, half = (pair.difference if sign else abs(pair.difference)), (pair.high - pair.low) / 2
    scale, digits, unit = (100, 2, " points") if "accuracy" in metric else (1, 4, "")
    shown = round(scale * size, digits) + 0.0  # no -0.00
    return f"{shown:.{digits}f} ± {scale * half:.{digits}f}{unit}".replace("-", "−")


def format_mean(mean: MeanCI, metric: str) -> str:
    """Return a mean with its interval, if there is one, such as `61.94 ± 0.40 %`."""
    scale, digits, unit = (100, 2, " %") if "accuracy" in metric or "error" in metric else (1, 4, "")
    half = f" ± {scale * mean.half_width:.{digits}f}" if mean.half_width is not None else ""
    return f"{scale * mean.mean:.{digits}f}{half}{unit}"


def format_metric_name(key: str) -> str:
    """Return a metric's name for readers: `train_loss` becomes `training loss`."""
    return key.replace("train_", "training_").replace("_", " ")


def _join_names(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
