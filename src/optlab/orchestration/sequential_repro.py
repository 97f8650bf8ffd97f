"""`optlab repro --until-decided`: a pipeline is reproduced with more and more seeds, until its verdicts are decided.

The seeds are added to params.yaml before their runs are trained, so the same command goes on after a kill: how far it
is follows from params.yaml and the record alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from optlab.analysis import comparison
from optlab.analysis.comparison import Comparison
from optlab.config import loader, params_editor
from optlab.orchestration import versus
from optlab.schema.parameters import PARAMS_FILE, Config, format_count
from optlab.system import files, locks
from optlab.system.errors import ConfigError
from optlab.system.text import get_terminal_width, wrap_text

Question = Literal["pairs", "best"]

_MAX_LISTED_PAIRS = 6  # with more, their number and the closest ones are given
_MAX_CLOSEST_PAIRS = 3


def run(config: Config, folder: Path, reproduce: Callable[[Config], None], question: Question = "pairs",
        at_most: int | None = None) -> None:  # fmt: skip
    """Reproduce a pipeline at each planned look, until the question is answered or there is no further look.

    Print what each look trains, and at the end what was decided with how many seeds, and which pairs were not.

    Args:
        folder: of the pipeline; the working directory is the top of the repository.
        reproduce: reproduces the pipeline in `folder` with a configuration.
        question: verdicts to wait for: `pairs`, on every pair of optimizers; `best`, on which optimizer is the best.
        at_most: largest number of seeds at which to look; default: that of the last planned look.

    Raises:
        ConfigError: the number of seeds cannot answer the question, or cannot be changed in params.yaml.
        BusyError: another process reproduces a pipeline in this working tree.
        OptlabError: as `reproduce` raises it.
    """
    looks = _select_looks(config, at_most)
    _check(config, folder, looks)
    n = looks[0]
    while True:
        config = _add_seeds(folder, n)
        print(_describe_look(config), flush=True)
        reproduce(config)
        compared = comparison.collect(config, folder)
        further = [look for look in looks if look > len(config.seeds)]
        if _is_answered(compared, question) or not further:
            print(wrap_text(_describe_answer(compared, question), get_terminal_width()))
            return
        n = further[0]


def _select_looks(config: Config, at_most: int | None) -> list[int]:
    """Return the planned looks up to a number of seeds.

    Raises:
        ConfigError: there is none.
    """
    looks = [look for look in config.verdict.looks if at_most is None or look <= at_most]
    if not looks:
        first = config.verdict.looks[0]
        raise ConfigError(f"--at-most {at_most}: the first look is at {first} seeds: give {first} or more")
    return looks


def _check(config: Config, folder: Path, looks: list[int]) -> None:
    """Check before anything runs that more seeds can answer the question, and that params.yaml takes them.

    Raises:
        ConfigError: they cannot, or it does not.
    """
    path, reference = folder / PARAMS_FILE, versus.find_study(folder)
    if reference:
        raise ConfigError(
            f"{path}: has the seeds of {reference.study}: run `optlab repro --until-decided` there, then repeat "
            f"`optlab versus`"
        )
    if len(config.optimizers) < 2:
        raise ConfigError(f"{path}: has one optimizer, so there is no pair to decide: add another one")
    for look in looks:
        params_editor.extend_seeds(path.read_bytes().decode(), look, path)


def _add_seeds(folder: Path, n: int) -> Config:
    """Bring params.yaml up to a number of seeds; returns its configuration."""
    path = folder / PARAMS_FILE
    with locks.hold_lock("repro"):  # no process reads the present file
        before = path.read_bytes().decode()
        after = params_editor.extend_seeds(before, n, path)
        if after != before:
            files.write_atomic(path, after.encode())
    return loader.load_for_stages(folder)


def _describe_look(config: Config) -> str:
    seeds, look = format_count(len(config.seeds), "seed"), config.verdict.looks[_count_looks(config) - 1]
    given = "" if look == len(config.seeds) else f", the first {look} of which count"
    return f"{_format_look(config)}: {seeds}{given}"


def _count_looks(config: Config) -> int:
    """Return the number of planned looks that the seeds suffice for."""
    return sum(look <= len(config.seeds) for look in config.verdict.looks)


def _format_look(config: Config) -> str:
    return f"look {_count_looks(config)} of {len(config.verdict.looks)}"


def _is_answered(compared: Comparison, question: Question) -> bool:
    """Return whether a question is answered, or more seeds cannot answer it: there is no pair."""
    if question == "pairs" or not compared.pairs:
        return not compared.undecided
    return bool(compared.best)


def _describe_answer(compared: Comparison, question: Question) -> str:
    """Return what is decided with how many seeds, and which pairs are not."""
    config, n_pairs = compared.config, len(compared.pairs)
    basis = f"with {config.verdict.looks[_count_looks(config) - 1]} seeds, {_format_look(config)}"
    if not n_pairs and not compared.undecided:
        return f"There is no pair to decide {basis}: fewer than two optimizers completed all their runs."
    undecided = _describe_undecided(compared)
    if question == "pairs":
        answer = undecided or f"{'Every pair is' if n_pairs > 1 else 'The pair is'} decided"
        return f"{answer} {basis}."
    if not compared.best:
        answer = "No optimizer is known to be the best"
    elif len(compared.best) == 1:
        whose = "" if len(compared.completed) == len(compared.rows) else " whose runs all completed"
        answer = f"{compared.best[0]} is better than every other optimizer{whose}"
    else:
        answer = f"The best are {' and '.join(compared.best)}, equivalent to each other,"
    return f"{answer} {basis}.{f' {undecided}.' if undecided else ''}"


def _describe_undecided(compared: Comparison) -> str:
    """Return how many pairs are undecided, and which, or the closest of them; nothing if there is none."""
    pairs: Sequence[tuple[str, str]] = compared.undecided
    if not pairs:
        return ""
    if len(compared.pairs) == 1:
        return f"{' and '.join(pairs[0])} are undecided"
    verb = "is" if len(pairs) == 1 else "are"
    intro = f"{len(pairs)} of {format_count(len(compared.pairs), 'pair')} {verb} undecided"
    if len(pairs) > _MAX_LISTED_PAIRS:
        pairs = sorted(pairs, key=lambda names: abs(compared.pairs[names].difference))[:_MAX_CLOSEST_PAIRS]
        intro += ", with the smallest differences"
    return f"{intro} ({', '.join(' and '.join(names) for names in pairs)})"
