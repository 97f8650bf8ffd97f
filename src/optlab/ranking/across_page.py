"""ACROSS.md and across.png of a folder with studies: the scores over all of them, and the performance profiles."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from optlab.analysis import figures
from optlab.analysis.mean_ci import ALPHA
from optlab.analysis.presentation import assign_colours
from optlab.analysis.tables import Cells, render_markdown_table
from optlab.ranking import across
from optlab.ranking.across import N_RESAMPLES, Estimate, Score, Workload
from optlab.ranking.costs import COSTS_FILE
from optlab.ranking.performance_profile import MAX_FACTOR, compute_profile
from optlab.ranking.table import format_interval
from optlab.schema.parameters import format_count
from optlab.system import files

PAGE_FILE = Path("ACROSS.md")
FIGURE_FILE = Path("across.png")


def write(folder: Path, reference: str) -> str:
    """Write ACROSS.md and across.png of a folder with studies; returns the text of ACROSS.md.

    Raises:
        ConfigError: a params.yaml cannot be used, or fewer than two studies or optimizers can be compared.
        StorageError: a file cannot be written.
    """
    text, figure = render(folder, reference)
    files.write_atomic(folder / PAGE_FILE, text.encode())
    files.write_atomic(folder / FIGURE_FILE, figure)
    return text


def render(folder: Path, reference: str) -> tuple[str, bytes]:
    """Return the contents of ACROSS.md and across.png.

    Raises:
        ConfigError: as for `write`.
    """
    workloads, left_out = across.load_workloads(folder, reference)
    scores = across.compute_scores(workloads, reference)
    parts = [
        "# Across the studies",
        _summarize(scores, reference, len(workloads)),
        render_markdown_table(build_table(scores, workloads)),
        f"![Performance profiles]({FIGURE_FILE})",
        _explain(folder, reference),
        "\n".join(f"- {_describe_workload(each, scores)}" for each in workloads),
        *([_list_left_out(left_out)] if left_out else []),
    ]
    return "\n\n".join(parts) + "\n", figures.render_png(plot_profiles(scores, reference))


def _summarize(scores: Sequence[Score], reference: str, count: int) -> str:
    first = [each.optimizer for each in scores if each.place[0] == 1]
    lead = f"{first[0]} reaches the target accuracy fastest."
    if len(first) > 1:
        lead = f"it is not decided which reaches the target accuracy fastest: {', '.join(first)}."
    return (
        f"**Over {count} studies, {lead}** The reference is {reference}. The table has the "
        f"{format_count(len(scores), 'optimizer')} that all of these studies have."
    )


def build_table(scores: Sequence[Score], workloads: Sequence[Workload]) -> Cells:
    """Return a row per optimizer, best score first."""
    ratios = [f"time in {each.name}" for each in workloads]
    table = [["place", "optimizer", "score", *ratios, "mean rank of the test accuracy"]]
    for each in scores:
        times = ["not reached" if math.isinf(ratio) else f"{ratio:.2f}" for ratio in each.ratios]
        table.append(
            [format_interval(*each.place), each.optimizer, _format(each.score, 2), *times, _format(each.rank, 1)]
        )
    return table


def _format(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def _explain(folder: Path, reference: str) -> str:
    costs = Path(os.path.relpath(COSTS_FILE, folder)).as_posix()
    return (
        f"The time is that of the median replicate to the study's target, as a multiple of {reference}'s. Each step "
        f"counts its gradients and, where [{COSTS_FILE.name}]({costs}) has the network, the optimizer's own work. The "
        f"performance profile shows the share of the studies on which an optimizer needs at most τ times {reference}'s "
        f"time. The score is the mean height of the profile over log τ, from τ = 1/{MAX_FACTOR:g} to {MAX_FACTOR:g}: "
        f"{reference} has 0.5, half of that time in every study gives 0.75, and a target that is never reached 0. A "
        "score depends on the reference and on no other optimizer. A rank depends on all optimizers of this table.\n\n"
        f"In brackets: 95 % intervals from {N_RESAMPLES:,} bootstrap resamples of each study's replicates. A place "
        "such as 2 – 7 gives the first and the last possible one: 1 + the number of optimizers that are shown to be "
        "faster, and the number of all optimizers less those that are shown to be slower. They are found by "
        "permutation tests of all pairs. The test statistic is the mean over seeds and studies of the log ratio of two "
        f"optimizers' times, where each ratio is limited to 1/{MAX_FACTOR:g} to {MAX_FACTOR:g}; the family-wise error "
        f"is at most {100 * ALPHA:g} % (Holm). Neither the intervals nor the places cover the choice of the studies: a "
        "few studies do not represent all networks, and two studies of one network count twice. A time is that of the "
        "first validation that reaches the target."
    )


def _describe_workload(workload: Workload, scores: Sequence[Score]) -> str:
    config, parts = workload.config, []
    reached = [f"{each.optimizer} {_count_reached(workload, each.optimizer)}" for each in scores]
    parts.append(
        f"[{workload.name}]({workload.name}/reports/comparison.md): {config.model}, "
        f"{format_count(config.training.epochs, 'epoch')}, target {100 * workload.target:g} % validation accuracy, "
        f"{workload.n} replicates, of which {', '.join(reached)} reached it."
    )
    if any(config.get_optimizer(each.optimizer).ranges for each in scores) and not config.tuning.per_seed:
        parts.append("One search for all replicates: the intervals leave out the variation between searches.")
    if not workload.has_costs:
        parts.append("The optimizers' own work is not measured on this network, and is left out.")
    return " ".join(parts)


def _count_reached(workload: Workload, optimizer: str) -> int:
    return sum(math.isfinite(each) for each in workload.times[optimizer])


def _list_left_out(left_out: dict[str, str]) -> str:
    return f"Left out: {', '.join(f'{name} ({reason})' for name, reason in left_out.items())}."


@figures.use_default_rc
def plot_profiles(scores: Sequence[Score], reference: str) -> Figure:
    """Plot the performance profile of each optimizer, over a logarithmic axis of factors."""
    figure = Figure(figsize=(7, 3.6))
    axis = figure.subplots()
    factors = np.geomspace(1 / MAX_FACTOR, MAX_FACTOR, 801)
    ratios = np.array([each.ratios for each in scores])
    colours = assign_colours(sorted(each.optimizer for each in scores))
    for number, (each, shares) in enumerate(zip(scores, compute_profile(ratios, factors), strict=True)):
        width = 4.5 - 3 * (number + 1) / len(scores)  # earlier lines are wider, to stay visible
        axis.step(factors, shares, where="post", label=each.optimizer, color=colours[each.optimizer], linewidth=width)
    axis.set_xscale("log")
    ticks = [1 / 4, 1 / 2, 1, 2, 4]
    axis.set_xticks(ticks, [f"{each:g}" for each in ticks])
    axis.minorticks_off()
    axis.set(
        xlabel=f"τ: time to the target, in times of {reference}", ylabel="share of the studies", ylim=(-0.03, 1.03)
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
