"""The verdict for a paper or a README: a small table of means, and the sentence, in Markdown or LaTeX."""

from collections.abc import Callable
from typing import Literal

from optlab.analysis import tables
from optlab.analysis.comparison import Comparison
from optlab.analysis.mean_ci import compute_mean_ci
from optlab.analysis.tables import EMPTY_CELL, Cells
from optlab.analysis.translation import translate
from optlab.analysis.verdicts import format_mean, format_metric_name, format_status, summarize_verdicts

SnippetFormat = Literal["markdown", "latex"]

_LATEX_ESCAPES = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--",
    "`": r"\textasciigrave{}",
})  # fmt: skip


def render(compared: Comparison, style: SnippetFormat) -> str:
    """Return optimizers with n and mean ± half the width of its 95 % interval, and the verdict's sentences.

    The means are over the seeds that the verdict uses; an optimizer with diverged runs is marked.
    """
    metric = compared.verdict_metric
    cells = [[translate("optimizer"), "n", format_metric_name(metric)]]
    for row in compared.rows:
        values = compared.get_values(row.optimizer)
        if row.all_completed:
            values = values[: compared.n_used]
        mean = format_mean(compute_mean_ci(values), metric) if values else EMPTY_CELL
        if not row.all_completed:
            mean = translate("{value} ({share})", value=mean, share=format_status(row))
        cells.append([row.optimizer, str(len(values)), mean])
    summary = summarize_verdicts(compared)
    sentences = [each.replace("`", "") for each in (summary.headline, summary.basis) if each]
    renderers: dict[SnippetFormat, Callable[[Cells, list[str]], str]] = {
        "markdown": _render_markdown,
        "latex": _render_latex,
    }
    return renderers[style](cells, sentences)


def _render_markdown(cells: Cells, sentences: list[str]) -> str:
    return "\n\n".join([tables.render_markdown_table(cells), "\n".join(sentences)])


def _render_latex(cells: Cells, sentences: list[str]) -> str:
    header, *rows = [" & ".join(cell.translate(_LATEX_ESCAPES) for cell in row) + r" \\" for row in cells]
    table = [r"\begin{tabular}{lrr}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    text = [sentence.translate(_LATEX_ESCAPES) for sentence in sentences]
    return "\n".join([r"% needs \usepackage{booktabs}", *table, "", *text])
