"""docs/optimizers.md: each formula and each function makes the steps that torch makes, in both languages."""

import inspect
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from draw import BLOCK, FIGURES, RULES, rules, uncorrected
from ruamel.yaml import YAML

TOP = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = TOP / "docs" / "optimizers.md", TOP / "docs" / "optimizers.zh.md"
STUDY = TOP / "studies" / "optimizers"
PARAMS = YAML(typ="safe").load(STUDY / "params.yaml")
STUDIED, SEEDS = PARAMS["optimizers"], PARAMS["seeds"]
PAGES = pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])

# With steps long enough for gradients to change, and an ε that counts.
CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.01}),
    "momentum": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "eps": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "eps": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.1, "eps": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "eps": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 0.1, "eps": 0.1}),
    "lion": (pytorch_optimizer.Lion, {"lr": 0.1, "weight_decay": 0.1, "weight_decouple": True}),
    "muon": (torch.optim.Muon, {"lr": 0.1}),
}
NAMES = {"lr": "η", "eps": "ε", "weight_decay": "λ"}  # a class's hyperparameters in a formula
CONSTANTS = {  # what the text says, or the default of the class
    "momentum": {"μ": 0.9}, "nesterov": {"μ": 0.9}, "rmsprop": {"ρ": 0.99}, "adamw": {"λ": 0.01},
    "nadam": {"ψ": 0.004, "p": 1.0}, "lion": {"β2": 0.99},
    "muon": {"μ": 0.95, "λ": 0.1, "a": 3.4445, "b": -4.775, "c": 2.0315},
}  # fmt: skip
SHAPE = (3, 5)
SECTIONS = {  # but those whose title is a name in both languages
    "What an optimizer does": "优化器在做什么", "A step": "一步", "SGD": "SGD（随机梯度下降）",
    "Momentum": "Momentum（动量）", "All of them on two slopes": "在两种坡上走一走", "What a step costs": "一步的开销",
    "Which learning rate to try first": "先试哪个学习率", "When which one": "什么时候用哪个",
    "What the original tutorial says": "原教程说的对不对",
}  # fmt: skip


def loss(w: torch.Tensor) -> torch.Tensor:
    """Of weights of any shape, with gradients of every size and sign."""
    return (w**2 * torch.arange(1, w.numel() + 1).view_as(w)).sum() + torch.sin(3 * w).sum()


def gradient(w: np.ndarray) -> np.ndarray:
    at = torch.tensor(w, requires_grad=True)
    loss(at).backward()
    return at.grad.numpy()


def initial_weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE)


def step_with_torch(name: str, steps: int = 20) -> Iterator[np.ndarray]:
    cls, given = CLASSES[name]
    weight = torch.nn.Parameter(torch.tensor(initial_weights()))
    optimizer = cls([weight], **given)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(weight).backward()
        optimizer.step()
        yield weight.detach().numpy().copy()


def is_close(name: str, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """To rounding: Muon's are bfloat16's, and torch keeps NAdam's product in float32."""
    return bool(np.abs(ours - theirs).max() < {"muon": 4e-2, "nadam": 1e-6}.get(name, 1e-9))


@pytest.mark.parametrize("name", RULES)
@PAGES
def test_page_functions_match_torch_steps(page, name):
    rule, state, w = rules(page)[name], {}, initial_weights()
    given = {key.replace("weight_", ""): value for key, value in CLASSES[name][1].items() if key in NAMES}
    for theirs in step_with_torch(name):
        w = rule(w, gradient(w), state, **given)
        assert is_close(name, w, theirs)


@pytest.mark.parametrize("name", [name for name in RULES if CLASSES[name][0] is not torch.optim.SGD])
def test_page_functions_have_torch_defaults(name):
    theirs = {key: each.default for key, each in inspect.signature(CLASSES[name][0]).parameters.items()}
    theirs["beta1"], theirs["beta2"] = theirs.get("betas", (None, None))
    renamed = {"decay": "weight_decay", "rho": "alpha", "psi": "momentum_decay", "mu": "momentum"}
    for key, ours in inspect.signature(rules()[name]).parameters.items():
        if ours.default is not inspect.Parameter.empty:
            assert ours.default == theirs[renamed.get(key, key)], key


def section(page: Path, name: str) -> str:
    return next(part for part in page.read_text().split("\n## ") if part.lower().startswith(name))


def formulas(page: Path, name: str) -> list[str]:
    """The quoted lines of a section; what is no formula is prose between them."""
    return [line[2:].removesuffix("<br>") for line in section(page, name).splitlines() if line.startswith("> ")]


TYPED = {
    "←": "=", "·": "*", "×": "@", "−": "-", "½": "0.5", "²": "**2", "^": "**", "ᵗ": "**t", "ᵀ": ".T", "⁺": "_next",
    "₁": "1", "₂": "2", "\u0302": "_hat", "行数": "rows", "列数": "columns",
}  # fmt: skip


def to_python(formula: str) -> str:
    """A formula as Python has it."""
    for sign, code in TYPED.items():
        formula = formula.replace(sign, code)
    return re.sub(r"\|(\w+)\|", r"norm(\1)", re.sub(r"√(max\([^)]*\)|\w+)", r"sqrt(\1)", formula))


class Values(dict[str, Any]):
    """Of a formula's letters: 0 before the first step; A, B and X rounded as torch's Muon does."""

    def __missing__(self, name: str) -> Any:
        if name in {"v", "r", "m", "V"}:
            return 0.0
        raise KeyError(name)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, rules()["bfloat16"](value) if name in {"A", "B", "X"} else value)


def unroll_muon_loop(lines: list[str]) -> list[str]:
    """Muon's loop written out: what stands between the two lines of prose, five times."""
    prose = [place for place, line in enumerate(lines) if not re.search("[=←]", line)]
    if not prose:
        return lines
    first, last = prose
    return [*lines[:first], *lines[first + 1 : last] * 5, *lines[last + 1 :]]


def formula_lines(page: Path, name: str) -> list[str]:
    """AdamW's first line is its own, the others are Adam's."""
    lines = formulas(page, name)
    return [lines[0], *formulas(page, "adam\n")] if name == "adamw" else unroll_muon_loop(lines)


@pytest.mark.parametrize("name", RULES)
@PAGES
def test_page_formulas_match_torch_steps(page, name):
    lines = [to_python(line) for line in formula_lines(page, "adam\n" if name == "adam" else name)]
    given = {NAMES[key]: value for key, value in CLASSES[name][1].items() if key in NAMES}
    values = Values({"β1": 0.9, "β2": 0.999, "rows": SHAPE[0], "columns": SHAPE[1]} | CONSTANTS.get(name, {}) | given)
    known = {"sqrt": np.sqrt, "sign": np.sign, "max": max, "norm": np.linalg.norm}
    weight, slope = ("W", "G") if name == "muon" else ("w", "g")
    values[weight] = initial_weights()
    for t, theirs in enumerate(step_with_torch(name), start=1):
        values.update({"t": t, slope: gradient(values[weight])})
        for line in lines:
            exec(line, known, values)
        assert is_close(name, values[weight], theirs)


def test_muon_function_transposes_tall_matrix(monkeypatch):
    monkeypatch.setattr(f"{__name__}.SHAPE", (6, 2))
    rule, state, w = rules()["muon"], {}, initial_weights()
    for theirs in step_with_torch("muon"):
        w = rule(w, gradient(w), state, lr=0.1)
        assert is_close("muon", w, theirs)


def test_page_translations_share_code_and_formulas():
    assert BLOCK.findall(ENGLISH.read_text()) == BLOCK.findall(CHINESE.read_text())
    for name in RULES:
        english, chinese = (
            [line for line in formulas(page, name) if re.search("[=←]", line)] for page in (ENGLISH, CHINESE)
        )
        assert [to_python(line) for line in english] == [to_python(line) for line in chinese]
        assert english


@PAGES
def test_page_figures_match_figure_files(page):
    assert re.findall(r"\]\(figures/(\w+)\.svg\)", page.read_text()) == ["bias", "decay", "valley", "rosenbrock"]
    assert sorted(path.stem for path in FIGURES.glob("*.svg")) == ["bias", "decay", "rosenbrock", "valley"]


def test_bias_correction_figure_matches_text():
    first, tenth, thousandth = uncorrected(np.array([1, 10, 1000]))
    said = [float(number) for number in re.findall(r"(\d\.\d) times", section(ENGLISH, "adam\n"))]
    assert said == [round(float(each), 1) for each in (first, tenth, thousandth)]
    assert math.isclose(first, 0.1 / math.sqrt(0.001))


def learning_rate_row(name: str) -> list[str]:
    """What the study's searches say of one optimizer's learning rate: the cells of a row."""
    searches = [json.loads((STUDY / "tuning" / f"{name}-{seed}" / "trials.json").read_text()) for seed in SEEDS]
    choices = [json.loads((STUDY / "tuning" / f"{name}-{seed}" / "choice.json").read_text()) for seed in SEEDS]
    trials = [trial for search in searches for trial in search["trials"]]
    default = [trial["looks"][-1]["accuracy"] for trial in trials if trial["index"] is None]
    assert len(default) == len(SEEDS)
    rates = sorted(choice["entry"]["lr"] for choice in choices)
    diverged = [trial["values"]["lr"] for trial in trials if trial["status"] == "diverged"]
    return [
        name, f"{STUDIED[name]['default']['lr']:g}", f"{fmean(default) * 100:.1f} %",
        " – ".join(dict.fromkeys(f"{lr:.2g}" for lr in (rates[0], rates[-1]))),
        f"{fmean(choice['validation_accuracy'] for choice in choices) * 100:.1f} %",
        f"{min(diverged):.2g}" if diverged else "–",
    ]  # fmt: skip


@PAGES
def test_page_learning_rates_match_study(page):
    rows = [f"| {' | '.join(learning_rate_row(name))} |" for name in STUDIED]
    assert "\n".join(rows) in page.read_text()


@PAGES
def test_page_costs_match_benchmark(page):
    rows = re.search(r"(\| \w+ \| \d.*\n)+", (TOP / "benchmarks" / "COSTS.md").read_text())[0]
    assert rows in page.read_text()


@PAGES
def test_page_tutorial_losses_match_recorded_claims(page):
    rows = [line.split("|") for line in page.read_text().rpartition("\n## ")[2].splitlines() if line.startswith("| ")]
    said = re.findall(r"\d{2,}\.\d|\d+,\d+,\d+", " ".join(row[2] for row in rows))
    assert len(said) > 6
    losses = re.findall(r"[\d.]+(?:e\+\d+)?", (TOP / "tutorial" / "reports" / "claims.md").read_text())
    recorded = {f"{float(each):,.1f}" for each in losses if each != "."}
    assert recorded | {each.removesuffix(".0") for each in recorded} >= set(said)


def test_page_translations_share_sections():
    english, chinese = (re.findall(r"^(#+) (.*)$", page.read_text(), re.MULTILINE) for page in (ENGLISH, CHINESE))
    assert [level for level, _ in english] == [level for level, _ in chinese]
    assert [SECTIONS.get(title, title) for _, title in english] == [title for _, title in chinese]
