"""`optlab report`: the page that it opens, and the verdict for a paper or a README."""

import re
import webbrowser
from pathlib import Path

import pytest
from test_cli import run_optlab
from test_comparison import collect_comparison

from optlab.analysis import comparison, snippet
from optlab.analysis.translation import use_language
from optlab.config import loader
from optlab.system import browser

TOP = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def compared():
    return comparison.collect(loader.load(TOP / "params.yaml"), TOP)


def test_markdown_snippet_has_means_and_verdict(compared):
    lines = snippet.render(compared, "markdown").splitlines()
    assert lines[:2] == ["| optimizer | n | test accuracy |", "| --- | --- | --- |"]
    for line, row in zip(lines[2:], compared.rows, strict=False):
        mean = row.test_accuracy
        assert line == f"| {row.optimizer} | 5 | {100 * mean.mean:.2f} ± {100 * mean.half_width:.2f} % |"
    assert lines[6].startswith(f"Too close to matter: {compared.rows[0].optimizer}, with") and lines[7].endswith(
        "simultaneous over all pairs and looks."
    )
    with use_language("zh"):
        assert "| 优化器 | n | 测试准确率 |" in snippet.render(compared, "markdown")


def test_latex_snippet_is_escaped(small_config, tmp_path):
    config = small_config(seeds=[0, 1, 2], verdict={"looks": [3]}, optimizers={
        "sgd_fast": {"class": "SGD", "lr": 0.1}, "adam": {"class": "Adam"}})  # fmt: skip
    text = snippet.render(collect_comparison(tmp_path, config, [0.5] * 6), "latex")
    assert text.startswith(
        "% needs \\usepackage{booktabs}\n\\begin{tabular}{lrr}\n\\toprule\noptimizer & n & test accuracy \\\\\n"
    )
    assert "\nsgd\\_fast & 3 & 50.00 $\\pm$ 0.00 \\% \\\\\n" in text and "\\bottomrule\n\\end{tabular}\n\n" in text
    body = text.partition("\n")[2]
    assert text.isascii() and not re.search(r"(?<!\\)[%#_~^`]", body)
    assert body.count("$") % 2 == 0 and body.count("{") == body.count("}")


@pytest.mark.parametrize(
    ("style", "line"),
    [
        ("markdown", "| sgd | 2 | 50.00 ± 0.00 % (1 of 3 diverged) |"),
        ("latex", r"sgd & 2 & 50.00 $\pm$ 0.00 \% (1 of 3 diverged) \\"),
    ],
    ids=["markdown", "latex"],
)
def test_snippet_marks_diverged_runs(small_config, tmp_path, style, line):
    compared = collect_comparison(tmp_path, small_config(seeds=[0, 1, 2]), [0.5] * 6, diverged=["sgd-1"])
    assert line in snippet.render(compared, style).splitlines()


@pytest.mark.parametrize("character", "\\{}&%$#_~^±−–`")
def test_latex_escapes_every_special_character(character):
    escaped = character.translate(snippet._LATEX_ESCAPES)
    assert escaped != character and escaped.isascii()


def test_report_command_prints_path_and_snippet():
    result = run_optlab("report", "studies/conv6", folder=TOP, DISPLAY="", WAYLAND_DISPLAY="")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{TOP / 'studies' / 'conv6' / 'reports' / 'report.html'}\n"
    result = run_optlab("report", "--snippet", "latex", folder=TOP / "studies" / "conv6")
    assert result.returncode == 0 and "muon & 5 & 87.57 $\\pm$" in result.stdout


def test_missing_report_is_error_with_command(tmp_path):
    (tmp_path / ".dvc").mkdir()
    for path in (".dvc/config", "dvc.yaml"):
        (tmp_path / path).touch()
    result = run_optlab("report", folder=tmp_path)
    expected = "error: reports/report.html: there is no report yet: `optlab repro` makes it\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)


@pytest.mark.parametrize(("display", "is_opened"), [(":0", True), ("", False)])
def test_browser_opens_where_there_is_a_display(monkeypatch, display, is_opened):
    opened = []
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert browser.open_page("file:///report.html#zh") is is_opened
    assert opened == ["file:///report.html#zh"] * is_opened
