"""`optlab rank`: RANKING.md and report.html of a ranking, whose bytes are a function of the records.

A place is an interval: from 1 + the number of optimizers that are better, to the number of optimizers less those that
are worse. The verdicts are simultaneous over all pairs, so all intervals hold together (Mohamad, Goeman and van Zwet
2019, simultaneous confidence intervals for ranks).
"""

import itertools
import os
from pathlib import Path

from optlab.analysis import comparison, figures, page, tables
from optlab.analysis.comparison import Comparison, RecordFolders
from optlab.analysis.tables import EMPTY_CELL, Cells
from optlab.analysis.translation import join_names
from optlab.analysis.verdicts import describe_pair, format_mean, get_pair
from optlab.config import loader
from optlab.ranking.costs import COSTS_FILE, StepCost, compute_time, read_costs
from optlab.ranking.protocol import PROTOCOL_FILE, Ranking
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import PARAMS_FILE, Config, format_count
from optlab.system import files
from optlab.system.errors import ConfigError, RecordError

RANKING_FILE = Path("RANKING.md")
REPORT_FILE = Path("report.html")


def write(ranking: Ranking) -> str:
    """Write RANKING.md, and report.html if there are places; returns the text of RANKING.md.

    Raises:
        ConfigError, RecordError: a record cannot be used, or is incomplete.
        StorageError: a file cannot be written.
    """
    contents = render_files(ranking)
    for path, content in contents.items():
        if content is None:
            path.unlink(missing_ok=True)
        else:
            files.write_atomic(path, content)
    return (contents[ranking.folder / RANKING_FILE] or b"").decode()


def render_files(ranking: Ranking) -> dict[Path, bytes | None]:
    """Return the contents of RANKING.md and report.html; None for the report while there are no places.

    Raises:
        ConfigError, RecordError: as for `write`.
    """
    compared = collect(ranking)
    report = page.render(compared, figures.compute_curves(compared), ranking.folder) if compared else None
    text = render(ranking, compared).encode()
    return {ranking.folder / RANKING_FILE: text, ranking.folder / REPORT_FILE: report}


def collect(ranking: Ranking) -> Comparison | None:
    """Return the comparison of all records with the references; None while the study has too few replicates.

    Raises:
        ConfigError, RecordError: a record cannot be used, or is incomplete.
    """
    study = ranking.check_study()
    seeds = study.seeds[: ranking.protocol.replicates]
    if len(seeds) < ranking.protocol.replicates:
        return None
    specs: dict[str, OptimizerSpec] = dict(study.optimizers)
    folders = {name: RecordFolders(ranking.study, ranking.study, tuple(seeds)) for name in specs}
    for folder in ranking.list_records():
        if folder.name in study.optimizers:
            raise ConfigError(f"{folder}: {ranking.study} has an optimizer of that name: remove the record")
        config = _load_record(ranking, folder)
        specs[folder.name] = config.get_optimizer(folder.name)
        folders[folder.name] = RecordFolders(folder, folder, tuple(config.seeds))
    merged = study.model_copy(update={"seeds": seeds, "optimizers": specs})
    return comparison.collect(merged, ranking.folder, folder_overrides=folders)


def _load_record(ranking: Ranking, folder: Path) -> Config:
    config = loader.load(folder / PARAMS_FILE)
    if len(config.seeds) != ranking.protocol.replicates or list(config.optimizers) != [folder.name]:
        raise RecordError(f"{folder / PARAMS_FILE}: is no record of {ranking.folder / PROTOCOL_FILE}: verify it")
    return config


def render(ranking: Ranking, compared: Comparison | None) -> str:
    """Return the text of RANKING.md.

    Args:
        compared: as `collect` returns it.
    """
    protocol = ranking.protocol
    parts = [f"# Ranking by protocol {protocol.version}"]
    if compared is None:
        count = len(ranking.check_study().seeds)
        parts.append(
            f"There are no places yet: the references in {ranking.study} have {count} of {protocol.replicates} "
            f"replicates."
        )
        parts += [f"Records without a place: {', '.join(each.name for each in ranking.list_records())}."] * bool(
            ranking.list_records()
        )
    else:
        costs = read_costs(COSTS_FILE, compared.config)
        parts += [
            tables.summarize_protocol(compared),
            tables.render_markdown_table(build_table(compared, ranking, costs)),
            _explain(ranking, compared),
            *(f"- {line}" for line in _compare_neighbours(compared)),
        ]
    return "\n\n".join([*parts, _describe_rules(ranking)]) + "\n"


def build_table(compared: Comparison, ranking: Ranking, costs: dict[str, StepCost]) -> Cells:
    """Return a row per optimizer, best mean first."""
    header = [
        "place",
        "optimizer",
        "test accuracy",
        "steps to target",
        "time to target",
        "numbers kept",
        "gradients a step",
    ]
    table = [[*header, "record"]]
    records = {folder.name for folder in ranking.list_records()}
    for row in compared.rows:
        cost, target = costs.get(row.optimizer), compared.target
        steps = target.compute_median_steps(row.optimizer) if target else None
        gradients = row.gradients_per_step
        time = EMPTY_CELL if steps is None or cost is None else f"{compute_time(steps, gradients or 1, cost):,.0f}"
        accuracy = format_mean(row.test_accuracy, "test_accuracy") if row.test_accuracy else EMPTY_CELL
        name = row.optimizer
        link = f"[{name}]({name}/{PARAMS_FILE})" if name in records else "reference"
        table.append(
            [
                format_place(compared, name),
                name,
                accuracy if row.all_completed else f"{accuracy} ({row.status})",
                EMPTY_CELL if steps is None else f"{steps:,}",
                time,
                EMPTY_CELL if cost is None else f"{cost.numbers:.1f}",
                EMPTY_CELL if gradients is None else f"{gradients:.3g}",
                link,
            ]
        )
    return table


def format_place(compared: Comparison, optimizer: str) -> str:
    """Return an optimizer's place, such as `1` or `2 – 4`; none with a diverged run."""
    verdicts = [(names, pair) for names, pair in compared.pairs.items() if optimizer in names]
    if not verdicts:
        return EMPTY_CELL
    wins = sum(pair.is_better and pair.first_is_better == (names[0] == optimizer) for names, pair in verdicts)
    losses = sum(pair.is_better and pair.first_is_better != (names[0] == optimizer) for names, pair in verdicts)
    return format_interval(1 + losses, 1 + len(verdicts) - wins)


def format_interval(first: int, last: int) -> str:
    """Return the places from the first to the last, such as `1` or `2 – 4`."""
    return str(first) if first == last else f"{first} – {last}"


def _compare_neighbours(compared: Comparison) -> list[str]:
    if not compared.pairs:
        return []
    neighbours = itertools.pairwise(row.optimizer for row in compared.rows if row.all_completed)
    return [describe_pair(compared, pair, get_pair(compared, *pair)) for pair in neighbours]


def _explain(ranking: Ranking, compared: Comparison) -> str:
    untuned = [name for name in compared.config.optimizers if name not in compared.tunings]
    no_search = f" ({join_names(untuned)}: no range, so no search)" if untuned else ""
    costs = Path(os.path.relpath(COSTS_FILE, ranking.folder)).as_posix()
    return (
        "A place such as 2 – 7 gives the first and the last possible one: 1 + the number of optimizers that are "
        "shown to be better, and the number of optimizers with a verdict less those that are shown to be worse. ± is "
        f"half the width of a 95 % interval of the mean over {ranking.protocol.replicates} replicates; each replicate "
        f"has a search of its own, so the interval includes the variation between searches{no_search}. Time to target "
        f"= steps to target × (gradients a step + the optimizer's own work by [{COSTS_FILE.name}]({costs})); its unit "
        "is the time for one gradient. Numbers kept are those of the optimizer's state for each weight. The list below "
        "compares each optimizer with the next one of the table. In brackets: 95 % intervals of the differences, "
        "simultaneous over all pairs, for one look."
    )


def _describe_rules(ranking: Ranking) -> str:
    protocol, folder = ranking.protocol, ranking.folder
    return (
        f"The rules are in [{PROTOCOL_FILE}]({PROTOCOL_FILE}). `optlab submit NAME` computes a record of "
        f"{format_count(protocol.replicates, 'replicate')} in {folder}/NAME. `optlab verify {folder}/NAME` checks all "
        "files of a record, draws one replicate at random, and trains it again. The seeds of a record are derived from "
        "the optimizer's entry, its modules and the protocol: whoever changes a line gets other seeds, and computes "
        "the whole record again. The references have the seeds of their study."
    )
