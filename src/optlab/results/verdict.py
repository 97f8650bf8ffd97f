"""What the comparison says in words: of each pair of optimizers, what their seeds allow to be said."""

from collections.abc import Iterable

from optlab.results.comparison import Comparison
from optlab.results.statistics import Figure, Pair, figure
from optlab.system.wording import counted

_ONE_SEED = (
    "With one seed each, the optimizers' part in a difference cannot be told from the seeds': there is no verdict, and "
    "the table is in the order of params.yaml. Add seeds there"
)
MOST_PAIRS = 6  # that are put into words
_NAMED = 4  # winners, of which each is


def verdict(compared: Comparison) -> str:
    """A few sentences, of which the first says which optimizers are better, if any are."""
    if compared.champion is None:
        return "No run completed: there is nothing to choose."
    whole = [row.optimizer for row in compared.rows if row.is_whole]
    if len(compared.rows) == 1 and whole:
        said = [_only(compared)]
    elif compared.n == 1:
        said = [_ONE_SEED]
    elif len(whole) < 2:
        said = [f"Only {whole[0]} completed all its runs" if whole else "No optimizer completed all its runs"]
        said[0] += ", so there is no verdict"
    elif compared.challenger:
        said = [_of_challenger(compared)]
    else:
        said = _of_pairs(compared, whole)
    bad = [row for row in compared.rows if not row.is_whole and row.optimizer != compared.challenger]
    left_out = [f"{row.optimizer} ({row.status})" for row in bad]
    if left_out and len(whole) > 1 and compared.n > 1:
        said.append(f"There is no verdict on {_list(left_out)}")
    if not compared.challenger:  # a single run of the others may be in another pipeline's folder
        said.append(_champion(compared))
    return " ".join(f"{sentence}." for sentence in said)


def _only(compared: Comparison) -> str:
    (row,) = compared.rows
    by = compared.judged_by
    return f"{row.optimizer} is the only optimizer: {words(by)} {value(getattr(row, by), by)}"


def _champion(compared: Comparison) -> str:
    """Which single run is chosen, which is another question."""
    assert compared.champion is not None
    run, by = compared.champion.files.id, compared.chosen_by
    best = value(figure([getattr(compared.champion.trained, by)]), by)
    return f"The run with the best {words(by)} is {run}, {best}: it is what `optlab predict` uses, and no verdict"


def _of_pairs(compared: Comparison, whole: list[str]) -> list[str]:
    pairs = compared.pairs
    beaten: dict[str, list[tuple[str, Pair]]] = {}
    for (first, second), pair in pairs.items():
        if pair.is_told:
            winner, loser = (first, second) if pair.favours_first else (second, first)
            beaten.setdefault(loser, []).append((winner, pair))
    if len(pairs) > MOST_PAIRS:
        said = _of_many(compared, beaten, whole)
    else:
        said = [_better(compared, loser, winners) for loser, winners in beaten.items()]
        said += [_not_better(compared, names, pair) for names, pair in pairs.items() if not pair.is_told]
    said[0] += f" ({_how(compared)})"
    return said


def _of_many(compared: Comparison, beaten: dict[str, list[tuple[str, Pair]]], whole: list[str]) -> list[str]:
    """Who is not beaten, or that one is ahead of the others, and by how much; and who beats whom besides."""
    unbeaten = [name for name in whole if name not in beaten]
    wins = {name: sum(name == winner for each in beaten.values() for winner, _ in each) for name in unbeaten}
    best = max(unbeaten, key=wins.__getitem__)
    if any(2 * wins[name] >= wins[best] for name in unbeaten if name != best):
        said, intro = f"Not beaten by any other: {_list(unbeaten)}", "Beaten"
    else:
        said, intro = f"{best} is better than {_ahead(compared, best, whole)}", "Beaten among these"
        whole = [name for name in whole if name != best]
        beaten = {loser: [each for each in winners if each[0] != best] for loser, winners in beaten.items()}
    rest = [f"{loser} by {_by([name for name, _ in each], whole)}" for loser, each in beaten.items() if each]
    every = "every pair is in reports/pairs.csv"
    return [said, f"{intro}: {'; '.join([*rest, every])}" if rest else every.capitalize()]


def _ahead(compared: Comparison, best: str, whole: list[str]) -> str:
    """The others, those that it cannot be told apart from, and its smallest and largest lead."""
    pairs = {(set(names) - {best}).pop(): pair for names, pair in compared.pairs.items() if best in names}
    gaps = {name: gap(pair, compared.judged_by, sign=False) for name, pair in pairs.items()}
    not_told = [f"{name} ({gaps[name]})" for name in whole if name != best and not pairs[name].is_told]
    told = sorted((name for name in pairs if pairs[name].is_told), key=lambda name: abs(pairs[name].difference))
    ends = " to ".join(f"{gaps[name]} ({name})" for name in (told[0], told[-1]))
    return f"all others{' but ' + _list(not_told) if not_told else ''}, by {ends}"


def _of_challenger(compared: Comparison) -> str:
    """The one against each of the others."""
    groups: dict[str, list[str]] = {}
    for (_, other), pair in compared.pairs.items():
        difference = gap(pair, compared.judged_by)
        if pair.is_told:
            how = "better than" if pair.favours_first else "worse than"
        elif pair.verdict == "equivalent":
            how = f"equivalent, within {100 * compared.config.verdict.margin:g} points, to"
        else:
            how = "not to be told apart from"
        groups.setdefault(how, []).append(f"{other} ({difference})")
    if not groups:
        return f"{compared.challenger} has not completed all its runs, so there is no verdict"
    said = "; ".join(f"{how} {_list(names)}" for how, names in groups.items())
    return f"{compared.challenger} is {said} ({_how(compared)})"


def _by(winners: list[str], whole: list[str]) -> str:
    """Who is better than one of them."""
    if len(winners) > _NAMED:
        return "all others" if len(winners) == len(whole) - 1 else f"{len(winners)} others"
    return _list(winners)


def _how(compared: Comparison) -> str:
    """What the differences are of."""
    return f"{words(compared.judged_by)}, {_tuned(compared)}n = {compared.n} {compared.unit}, ± 95 %"


def _tuned(compared: Comparison) -> str:
    """With what effort the values were searched for."""
    trials = {name: len(own.drawn) // len(own.choice.studies) for name, own in compared.tunings.items()}
    if not trials:
        return ""
    most = max(trials.values())
    who = "" if len(trials) == len(compared.rows) else f"{_list(trials)} "
    return f"{who}tuned, {counted(most, 'trial')}{' each' if len(trials) > 1 else ''}, "


def _better(compared: Comparison, loser: str, winners: list[tuple[str, Pair]]) -> str:
    gaps = _list(
        gap(pair, compared.judged_by, sign=False) + (" (less than the margin)" if pair.verdict != "better" else "")
        for _, pair in winners
    )
    names = [name for name, _ in winners]
    return f"{_list(names)} {'are' if len(names) > 1 else 'is'} better than {loser}, by {gaps}"


def _not_better(compared: Comparison, names: tuple[str, str], pair: Pair) -> str:
    margin = f"{100 * compared.config.verdict.margin:g} points"
    difference = gap(pair, compared.judged_by)
    if pair.verdict == "equivalent":
        return f"{_list(names)} are equivalent within {margin}: {difference}"
    said = f"{_list(names)} cannot be told apart with {pair.n} {compared.unit}: {difference}"
    if pair.needed is not None and compared.judged_by == "test_accuracy":
        said += f"; a difference of {margin} would need {pair.needed:,} {compared.unit}"
    return said


def gap(pair: Pair, what: str, sign: bool = True) -> str:
    """The difference with its interval, such as -0.16 ± 1.53 points."""
    size, half = (pair.difference if sign else abs(pair.difference)), (pair.high - pair.low) / 2
    scale, digits, unit = (100, 2, " points") if "accuracy" in what else (1, 4, "")
    shown = round(scale * size, digits) + 0.0  # no -0.00
    return f"{shown:.{digits}f} ± {scale * half:.{digits}f}{unit}".replace("-", "−")


def value(mean: Figure, what: str) -> str:
    """A mean with its interval, if it has one."""
    scale, digits, unit = (100, 2, " %") if "accuracy" in what or "error" in what else (1, 4, "")
    half = f" ± {scale * mean.half:.{digits}f}" if mean.half is not None else ""
    return f"{scale * mean.mean:.{digits}f}{half}{unit}"


def words(key: str) -> str:
    """What a figure is called."""
    return key.replace("train_", "training_").replace("_", " ")


def _list(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
