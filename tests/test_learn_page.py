"""docs/learn.html: its rules make torch's steps, its numbers are the record's, its controls work in a browser."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import build_page
import facts
import landscape
import numpy as np
import pytest
import pytorch_optimizer
import torch
from scipy import ndimage
from test_optimizers_page import CHINESE, ENGLISH, formula_lines, loss

from optlab.config import loader
from optlab.data import cifar10
from optlab.system.errors import OptlabError
from optlab.training import determinism

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "docs" / "learn.html"
LANDSCAPE = landscape.Landscape.read(landscape.RESULT)
MAX_BYTES = 800_000
STEPS = 100

# JavaScript's rule: the class, its hyperparameters, and those of the script.
CLASSES: dict[str, tuple[Any, dict[str, Any], dict[str, float]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.01}, {"η": 0.01}),
    "momentum": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.8}, {"η": 0.01, "μ": 0.8}),
    "nesterov": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.8, "nesterov": True}, {"η": 0.01, "μ": 0.8}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1}, {"η": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9}, {"η": 0.01, "ρ": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.99)}, {"η": 0.1, "β1": 0.8, "β2": 0.99}),
    "adamw": (
        torch.optim.AdamW,
        {"lr": 0.1, "betas": (0.8, 0.99), "weight_decay": 0.3},
        {"η": 0.1, "β1": 0.8, "β2": 0.99, "λ": 0.3},
    ),
    "lion": (
        pytorch_optimizer.Lion,
        {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.3, "weight_decouple": True},
        {"η": 0.1, "β1": 0.8, "β2": 0.9, "λ": 0.3},
    ),
}


def read_data() -> dict[str, Any]:
    """The data in the page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', PAGE.read_text())[1])


def read_texts() -> dict[str, dict[str, str]]:
    return json.loads(re.search(r'<script type="application/json" id="texts">(.*)</script>', PAGE.read_text())[1])


# What needs no browser.


def test_committed_page_is_built_from_committed_record():
    assert build_page.build() == PAGE.read_text()


def test_page_is_small_and_loads_nothing():
    text = PAGE.read_text()
    assert len(text.encode()) < MAX_BYTES
    markup = re.sub(r"<script.*?</script>|<!--.*?-->", "", text, flags=re.DOTALL)
    assert not re.search(
        r"<(?:script|img|iframe|video)[^>]* src=|<link(?! rel=\"icon\" href=\"data:)|@import|url\(", markup
    )


def test_page_texts_exist_in_both_languages():
    texts = read_texts()
    assert all(set(text) == {"en", "zh"} and all(text.values()) for text in texts.values())
    placeholders = {
        key: [set(re.findall(r"\{\w+\}", text[each])) for each in ("en", "zh")] for key, text in texts.items()
    }
    assert not {key: both for key, both in placeholders.items() if both[0] != both[1]}
    used = set(re.findall(r'say\("(\w+)"', PAGE.read_text()))
    assert len(used) > 20 and used <= set(texts)


def test_build_stops_where_record_contradicts_text():
    claims = [{"id": "slow", "figure": {}}, {"id": "untested"}]
    build_page.check_texts(claims, {"slow": True, "wrong_lead": True})
    for supported, culprit in (({"slow": False}, "slow"), ({}, "slow"), ({"slow": True, "lead": False}, "lead")):
        with pytest.raises(OptlabError, match=f"{culprit}: the record does not support"):
            build_page.check_texts(claims, supported)


def test_build_stops_at_unknown_number():
    assert build_page.fill({"en": "{a} {{b}}"}, {"a": "1"}) == {"en": "1 {b}"}
    with pytest.raises(OptlabError, match=r"no number \{b\}"):
        build_page.fill(["{b}"], {"a": "1"})


def test_statements_depend_on_record(monkeypatch):
    """Each statement about the tutorial's experiment is false for losses of which it is not true."""
    study, tutorial = (
        build_page.comparison.collect(loader.load(folder / "params.yaml"), folder)
        for folder in (build_page.STUDY, build_page.TUTORIAL)
    )
    assert all(facts.check_statements(study, tutorial).values())

    class Claims:
        findings = staticmethod(facts.import_claims().findings)

        @staticmethod
        def running_losses(folder: Path, name: str) -> list[float]:
            return {"sgd": [3.0, 1.0, 2.0], "adam": [4.0, 3.0, 2.0]}.get(name, [3.0, 2.0, 1.0])

    monkeypatch.setattr(facts, "import_claims", lambda: Claims)
    found = facts.check_statements(study, tutorial)
    assert not any(found[name] for name in ("stuck", "unstable", "slow"))


def test_wrong_shares_count_subsets_of_seeds():
    # differences −1, 1, 2: the first is better. One single seed says otherwise; of the pairs (means 0, 0.5, 1.5) one is
    # a tie.
    assert facts.compute_wrong_shares([1, 2, 3], [2, 1, 1]) == pytest.approx([1 / 3, 1 / 6])
    assert facts.compute_wrong_shares([2, 1, 1], [1, 2, 3]) == pytest.approx([1 / 3, 1 / 6])


def test_page_accuracies_are_those_of_the_runs():
    study = read_data()["study"]
    runs = {optimizer["name"]: optimizer["runs"] for optimizer in study["optimizers"]}
    recorded = {
        path.parent.name: json.loads(path.read_text()) for path in (build_page.STUDY / "runs").glob("*/test.json")
    }
    completed = {name: test for name, test in recorded.items() if test["status"] == "completed"}
    assert len(completed) == sum(map(len, runs.values())) > 10
    for run_id, test in completed.items():
        name, _, seed = run_id.rpartition("-")
        (accuracy,) = (run["accuracy"] for run in runs[name] if run["seed"] == int(seed))
        assert accuracy == test["test_accuracy"]


def test_page_trials_are_those_of_the_searches():
    optimizers = {each["name"]: each for each in read_data()["study"]["optimizers"]}
    for name, optimizer in optimizers.items():
        recorded = [
            trial
            for path in sorted((build_page.STUDY / "tuning").glob("*/trials.json"))
            if path.parent.name.rpartition("-")[0] == name
            for trial in json.loads(path.read_text())["trials"]
        ]
        shown = optimizer["trials"]
        assert len(recorded) == len(shown) > 5
        assert sum(trial["is_chosen"] for trial in shown) >= 1
        sampled = sorted(trial["values"]["lr"] for trial in recorded if trial["index"] is not None)
        assert sampled == sorted(trial["rate"] for trial in shown if not trial["is_default"])
        ends = [trial["looks"][-1]["accuracy"] for trial in recorded if trial["status"] != "diverged"]
        assert sorted(ends) == sorted(trial["accuracy"] for trial in shown if trial["accuracy"] is not None)


# The plane through three states of the network.


@pytest.fixture(scope="module")
def small_landscape(sample, small_config):
    config = small_config()
    determinism.configure_torch(config.training)
    splits = cifar10.load(sample, config.data, 0)
    return config, splits, landscape.compute(config, splits, images=20, points=3)


def test_landscape_has_losses_of_its_states_and_grid(small_landscape):
    config, splits, found = small_landscape
    weights = landscape.train_states(config, splits)
    origin, axes, places = landscape.span_plane(list(weights.values()))
    assert torch.allclose(axes @ axes.T, torch.eye(2, dtype=torch.float64), atol=1e-12)
    for own, place in zip(weights.values(), places, strict=True):
        assert torch.allclose(origin + torch.tensor(place, dtype=torch.float64) @ axes, own, atol=1e-9)
    shown = cifar10.Split(splits.train.images[:20], splits.train.labels[:20])
    for state in found.states:
        assert state.loss == landscape.measure(config.model, weights[state.name], shown)["loss"]
    corner = origin + torch.tensor([found.x[1], found.y[0]], dtype=torch.float64) @ axes
    assert found.losses[0][2] == landscape.measure(config.model, corner, shown)["loss"]
    assert len(found.losses) == 3 and found.steps == 7


def test_landscape_is_repeatable(small_landscape):
    config, splits, found = small_landscape
    assert landscape.compute(config, splits, images=20, points=3) == found


def test_committed_landscape_fits_its_script():
    config = loader.load(landscape.PARAMS)
    assert (LANDSCAPE.steps, LANDSCAPE.images) == (config.steps_per_epoch, landscape.IMAGES)
    assert [len(row) for row in LANDSCAPE.losses] == [landscape.POINTS] * landscape.POINTS
    assert [state.name for state in LANDSCAPE.states] == ["start", *config.optimizers]
    assert LANDSCAPE.states[0].loss == pytest.approx(math.log(10), abs=0.05)  # before the training: a guess
    for state in LANDSCAPE.states:
        assert evaluate_spline([(state.x, state.y)])[0] == pytest.approx(state.loss, abs=0.02)


def evaluate_spline(places: list[tuple[float, float]]) -> np.ndarray:
    """The cubic spline through the grid, by scipy, at places of the plane."""
    (left, right), (bottom, top), n = LANDSCAPE.x, LANDSCAPE.y, landscape.POINTS - 1
    rows = [(y - bottom) / (top - bottom) * n for _, y in places]
    columns = [(x - left) / (right - left) * n for x, _ in places]
    return ndimage.map_coordinates(np.array(LANDSCAPE.losses), [rows, columns], order=3, mode="mirror")


# The scripts, in a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from shutil import which

    chromium = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


class Opened:
    """The page in an empty profile, and what went wrong in it."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, "locale": "en-US"} | options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(180_000)
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.problems.append(request.url))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(PAGE.as_uri())

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def label(self, selector: str) -> str:
        return self.page.locator(f"{selector} [role=img]").first.get_attribute("aria-label")

    def slide(self, selector: str, value: float) -> None:
        """Move a slider as a hand does: set its value, and tell the page."""
        self.page.locator(selector).evaluate(
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })) }",
            value,
        )


@pytest.fixture(scope="module")
def opened(browser) -> Iterator[Opened]:
    """The page in English; a test leaves it as it likes."""
    page = Opened(browser)
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def rules(opened) -> list[str]:
    return opened.page.evaluate("Object.keys(RULES)")


def test_scripts_have_rules_with_tests(rules):
    assert rules == list(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_javascript_rule_matches_torch_steps(opened, name):
    """With the gradients that torch's steps meet."""
    cls, given, hyperparameters = CLASSES[name]
    weight = torch.nn.Parameter(torch.tensor(np.random.default_rng(0).normal(size=5)))
    start, optimizer = weight.detach().tolist(), cls([weight], **given)
    gradients, theirs = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(weight).backward()
        gradients.append(weight.grad.tolist())
        optimizer.step()
        theirs.append(weight.detach().tolist())
    ours = opened.page.evaluate(
        """([name, start, hyperparameters, gradients]) => {
            const states = start.map((w) => createState(name, w, hyperparameters));
            return gradients.map((step) => step.map((g, i) => takeStep(name, states[i], g)));
        }""",
        [name, start, hyperparameters, gradients],
    )
    assert np.abs(np.array(theirs) - start).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_javascript_formulas_are_those_of_the_documentation(opened, rules, page):
    for name in rules:
        ours = opened.page.evaluate("(name) => RULES[name].lines.map(([formula]) => formula)", name)
        assert ours == formula_lines(page, "adam\n" if name == "adam" else name)


SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def evaluate_formula(filled: str) -> float:
    """The value of a formula with numbers in place of letters."""
    code = filled.replace("·", "*").replace("−", "-").replace("∞", "math.inf")
    code = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"**{found[0].translate(SUPERSCRIPTS)}", code)
    code = re.sub(r"√([\d.e-]+)", r"math.sqrt(\1)", code)
    return float(eval(code, {"math": math, "sign": np.sign}))


@pytest.mark.parametrize("name", CLASSES)
def test_formulas_with_numbers_give_their_results(opened, name):
    lines = opened.page.evaluate(
        """([name, hyperparameters]) => {
            const [shown, state] = [[], createState(name, 3, hyperparameters)];
            for (let t = 1; t <= 12; t++)
                takeStep(name, state, state.w - 1, (...line) => shown.push(fillIn(...line)));
            return shown;
        }""",
        [name, CLASSES[name][2]],
    )
    assert len(lines) >= 12
    for line in lines:
        result = evaluate_formula(line["result"])
        assert evaluate_formula(line["filled"]) == pytest.approx(result, rel=5e-3, abs=2e-3), line


@pytest.mark.parametrize("slope", ["valley", "saddle", "rosenbrock", "network"])
def test_gradient_of_slope_matches_differences(opened, slope):
    differences = opened.page.evaluate(
        """(name) => {
            const { view: [left, right, bottom, top], loss, gradient } = SLOPES[name];
            const errors = [];
            for (let k = 1; k < 40; k++) {
                const [x, y, h] = [left + ((k * 0.618) % 1) * (right - left), bottom + (k / 40) * (top - bottom), 1e-5];
                const slow = [(loss(x + h, y) - loss(x - h, y)) / (2 * h), (loss(x, y + h) - loss(x, y - h)) / (2 * h)];
                gradient(x, y).forEach((g, i) => errors.push(Math.abs(g - slow[i]) / (1 + Math.abs(g))));
            }
            return errors;
        }""",
        slope,
    )
    assert len(differences) == 78 and max(differences) < 1e-5


def test_spline_matches_scipy(opened):
    generator = np.random.default_rng(0)
    places = list(zip(generator.uniform(*LANDSCAPE.x, 100), generator.uniform(*LANDSCAPE.y, 100), strict=True))
    places += [(LANDSCAPE.x[1], LANDSCAPE.y[1]), (LANDSCAPE.x[0], LANDSCAPE.y[0])]
    ours = opened.page.evaluate("(places) => places.map(([x, y]) => SLOPES.network.loss(x, y))", places)
    np.testing.assert_allclose(ours, evaluate_spline(places), rtol=1e-9)
    assert opened.page.evaluate("(x) => Number.isNaN(SLOPES.network.loss(x, 0))", LANDSCAPE.x[1] + 0.01)


def count_steps(opened: Opened) -> list[int]:
    return [int(step) for step in re.findall(r"step (\d+)", opened.text("#walks"))]


def test_buttons_step_play_and_reset(opened):
    page = opened.page
    page.locator("#reset").click()
    assert count_steps(opened) == [0, 0, 0]
    assert not page.locator("#formulas .numbers").count()
    page.locator("#step").click()
    assert count_steps(opened) == [1, 1, 1]
    page.locator("#steps10").click()
    assert count_steps(opened) == [11, 11, 11]
    page.locator("#play").click()
    assert opened.text("#play") == "Pause"
    page.wait_for_function("Number(/step (\\d+)/.exec(document.getElementById('walks').textContent)[1]) >= 13")
    page.locator("#play").click()
    assert opened.text("#play") == "Play"
    steps = count_steps(opened)
    page.wait_for_timeout(400)
    assert count_steps(opened) == steps
    page.locator("#play").click()
    page.locator("#reset").click()
    assert (count_steps(opened), opened.text("#play")) == ([0, 0, 0], "Play")


@pytest.mark.parametrize("slope", ["valley", "saddle", "rosenbrock", "network"])
def test_slope_button_changes_map_text_and_start(opened, slope):
    opened.page.locator(f"#slope input[value={slope}]").check()
    assert opened.label("#map").startswith(f"Map of the slope {read_texts()[f'slope_{slope}']['en']}")
    assert opened.page.locator(".about:visible").count() == 1
    assert opened.page.locator(f".about[data-slope={slope}]").is_visible()
    start = opened.page.evaluate("(name) => SLOPES[name].start", slope)
    assert opened.page.evaluate("walking.start") == start
    opened.page.locator("#reset").click()
    opened.page.locator("#steps10").click()
    assert count_steps(opened) == [10, 10, 10]
    losses = [float(each.replace("−", "-")) for each in re.findall(r"loss (\S+) at", opened.text("#walks"))]
    assert min(losses) < opened.page.evaluate("(name) => SLOPES[name].loss(...SLOPES[name].start)", slope)


def test_click_on_map_and_sliders_set_start(opened):
    page = opened.page
    page.locator("#slope input[value=valley]").check()
    page.locator("#reset").click()
    box = page.locator("#map svg").bounding_box()
    page.mouse.click(box["x"] + 34 + (box["width"] - 42) / 2, box["y"] + 8 + (box["height"] - 42) / 4)
    assert page.evaluate("walking.start") == pytest.approx([-1.0, 0.6], abs=0.03)  # the middle; three quarters up
    assert "at (−1" in opened.text("#walks") or "at (−0.9" in opened.text("#walks")
    opened.slide("#start0", 1.5)
    opened.slide("#start1", -0.5)
    assert page.evaluate("walking.start") == pytest.approx([1.5, -0.5])
    assert "at (1.5, −0.5)" in opened.text("#walks")


def test_each_optimizer_has_sliders_that_change_its_walk(opened, rules):
    page = opened.page
    page.locator("#slope input[value=rosenbrock]").check()
    page.locator("#reset").click()
    for _ in range(4):
        page.locator("#steps10").click()
    for name in rules:
        page.locator("#optimizer0").select_option(name)
        keys = page.evaluate("Object.keys(walking.slots[0].values)")
        assert keys == list(CLASSES[name][2])
        for key in keys:
            slider = f"[id='{key}0']"
            before, value = opened.text("#walks p:first-child"), float(page.locator(slider).input_value())
            opened.slide(slider, value - 1 if key == "η" else 0 if value else 4)
            assert opened.text("#walks p:first-child") != before, (name, key)
            opened.slide(slider, value)
            shown = page.locator(f".slot:nth-child(1) .slider:has({slider}) output").inner_text()
            assert page.locator(slider).get_attribute("aria-valuetext") == shown
    page.locator("#optimizer1").select_option("none")
    page.locator("#optimizer2").select_option("none")
    assert page.locator("#walks p").count() == page.locator(".formulas").count() == 1
    page.locator("#optimizer1").select_option("adam")
    page.locator("#optimizer2").select_option("adam")
    assert page.locator("#walks p").count() == 3


def test_large_learning_rate_diverges_and_says_so(opened):
    page = opened.page
    page.locator("#slope input[value=valley]").check()
    page.locator("#optimizer0").select_option("sgd")
    opened.slide("[id='η0']", 0)  # 1: more than 2 / 50, where a step overshoots by more than it came
    assert "diverged" in opened.text("#walks p:first-child")
    page.locator("#slope input[value=network]").check()
    opened.slide("[id='η0']", 1)
    assert "left the map" in opened.text("#walks p:first-child")


def test_formula_shows_step_of_chosen_weight(opened):
    page = opened.page
    page.locator("#slope input[value=valley]").check()
    page.locator("#optimizer0").select_option("sgd")
    page.locator("#reset").click()
    page.locator("#step").click()
    page.locator("#weight input[value='0']").check()
    assert opened.text(".formulas:first-child .numbers") == "(−4) − 0.03·(−4) = −3.88"
    page.locator("#weight input[value='1']").check()
    assert opened.text(".formulas:first-child .numbers") == "0.9 − 0.03·45 = −0.45"


def test_learning_rate_dots_are_trials(opened):
    page, study = opened.page, read_data()["study"]
    for optimizer in study["optimizers"]:
        for other in study["optimizers"]:
            page.locator(f"#shown input[value={other['name']}]").set_checked(other is optimizer)
        shown = optimizer["trials"]
        assert page.locator("#trial option").count() == len(shown)
        diverged = sum(trial["accuracy"] is None for trial in shown)
        marks = page.locator("#trials g[data-mark=dot] path, #trials g[data-mark=dot] circle").count()
        chosen = sum(trial["is_chosen"] and trial["accuracy"] is not None for trial in shown)
        assert marks == len(shown) + chosen + 1  # and the ring of the selected one
        assert opened.text("#trial").count("✕") == diverged
        assert optimizer["label"] in opened.label("#trials")


def test_click_on_dot_and_list_select_a_trial(opened):
    page = opened.page
    for box in page.locator("#shown input").all():
        box.set_checked(box.get_attribute("value") == "sgd")
    place = page.evaluate(
        """() => {
            const trial = d3.least(trials.filter(({ optimizer }) => optimizer.name === "sgd"), ({ rate }) => rate);
            const svg = document.querySelector("#trials svg");
            const dots = svg.querySelectorAll("g[data-mark=dot] :is(circle, path)");
            const left = d3.least(dots, (dot) => dot.getBoundingClientRect().x).getBoundingClientRect();
            return [left.x + left.width / 2, left.y + left.height / 2 + window.scrollY, trial.rate];
        }"""
    )
    page.evaluate("(y) => window.scrollTo(0, y - 300)", place[1])
    top = page.evaluate("window.scrollY")
    page.mouse.click(place[0], place[1] - top)
    assert opened.text("#curve h3") == f"SGD, learning rate {float(f'{place[2]:.4g}'):g}"
    assert "validated once" in opened.text("#curve p") or "validations" in opened.text("#curve p")
    best = page.evaluate("trials.findIndex(({ optimizer, is_chosen }) => optimizer.name === 'sgd' && is_chosen)")
    page.locator("#trial").select_option(str(best))
    assert "was chosen" in opened.text("#curve p")
    assert page.locator("#curve svg").count() == 2
    assert page.locator("#curve svg").first.locator("g[data-mark=line] path").count() > 0
    bad = page.evaluate("trials.findIndex(({ optimizer, isBad }) => optimizer.name === 'sgd' && isBad)")
    page.locator("#trial").select_option(str(bad))
    assert "diverged" in opened.text("#curve p") and not page.locator("#curve svg").count()


def test_seeds_are_added_guessed_and_judged(opened):
    page, study = opened.page, read_data()["study"]
    page.locator("#again").click()
    assert opened.text("#seed-state").startswith(f"1 of {len(study['optimizers'][0]['runs'])} seeds")
    page.locator("#guess1").click()
    assert "Your guess: AdamW (after 1)." in opened.text("#seed-state")
    page.locator("#add").click()
    assert opened.text("#seed-state").startswith("2 of") and page.locator("#verdict").is_hidden()
    page.locator("#all").click()
    assert page.locator("#add").is_disabled() and page.locator("#verdict").is_visible()
    (pair,) = (pair for pair in study["pairs"] if set(pair["names"]) == {"adam", "adamw"})
    winner = pair["names"][pair["difference"] < 0]
    assert ("opposite" if winner == "adam" else "agrees") in opened.text("#seed-state")
    page.locator("#again").click()
    assert opened.text("#seed-state").startswith("1 of") and "guess:" not in opened.text("#seed-state")


WORDS = {"better": "is better", "equivalent": "equivalent", "undecided": "undecided"}


def test_every_pair_has_the_verdict_of_the_record(opened):
    page = opened.page
    for pair in read_data()["study"]["pairs"]:
        for first, second in (pair["names"], pair["names"][::-1]):
            page.evaluate(
                "([a, b]) => { Object.assign(guessing, { first: a, second: b, shown: Infinity }); drawSeeds() }",
                [first, second],
            )
            text = opened.text("#verdict")
            assert WORDS.get(pair["verdict"], "but by less than") in text
            ends = sorted(abs(float(each.replace("−", "-"))) for each in re.findall(r"−?\d+\.\d\d", text))
            if pair["verdict"] != "equivalent":
                expected = sorted(round(abs(100 * pair[key]), 2) for key in ("difference", "low", "high"))
                assert ends == pytest.approx(expected, abs=0.011)
            if "is better" in text:
                label = build_page.LABELS[pair["names"][not pair["first_is_better"]]]
                assert f": {label} is better" in text and f"difference is {100 * abs(pair['difference']):.2f}" in text


def test_share_of_wrong_guesses_follows_slider_and_pair(opened):
    page, pairs = opened.page, read_data()["study"]["pairs"]
    page.locator("#first").select_option("adam")
    page.locator("#second").select_option("nadam")
    page.locator("#first").select_option("nadam")  # they change places
    assert [page.locator(each).input_value() for each in ("#first", "#second")] == ["nadam", "adam"]
    page.locator("#second").select_option("nadam")
    (pair,) = (pair for pair in pairs if set(pair["names"]) == {"adam", "nadam"})
    for k in (1, 3):
        opened.slide("#wrong-n", k)
        mean = sum(each["wrong"][k - 1] for each in pairs) / len(pairs)
        assert f"Adam and NAdam: {100 * pair['wrong'][k - 1]:.1f} %" in opened.text("#wrong-text")
        assert f"All pairs: {100 * mean:.1f} %" in opened.text("#wrong-text")
    assert opened.text("#wrong-n-value") == "3 seeds"
    assert page.locator("#wrong circle").count() == len(pairs) + 1


def test_each_claim_has_its_figure(opened):
    for claim in read_data()["claims"]:
        assert opened.label(f"#claim-{claim['id']}") == claim["alternative"]["en"]
        assert opened.page.locator(f"#claim-{claim['id']} svg path, #claim-{claim['id']} svg rect").count()


def test_button_switches_language(opened):
    page = opened.page
    page.locator("#slope input[value=valley]").check()
    page.locator("#language").click()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert "顺着坡往下走" in opened.text("main") and "Walk down a slope" not in opened.text("main")
    assert opened.label("#map").startswith("坡的地图：窄谷") and page.title() == read_texts()["title"]["zh"]
    assert "第" in opened.text("#walks") and "学习率" in opened.text("#slots")
    page.locator("#language").click()
    english = page.evaluate("document.body.innerText")
    quotes = [
        quote for claim in build_page.YAML(typ="safe").load(build_page.TEXTS)["claims"] for quote in claim["quote"]
    ]
    for known in [*quotes, "中文"]:
        english = english.replace(known, "")
    assert re.findall(r"[\u4e00-\u9fff]+", english) == []
    page.reload()
    assert page.evaluate("document.documentElement.lang") == "en"


def test_page_fetches_nothing_and_has_no_errors(opened):
    """After all that was done with it above."""
    assert set(opened.problems) == {PAGE.as_uri()}


def test_controls_work_by_keyboard(opened):
    page = opened.page
    page.locator("#reset").focus()
    page.keyboard.press("Enter")
    page.locator("#step").focus()
    page.keyboard.press("Space")
    assert count_steps(opened)[0] == 1
    before = page.evaluate("walking.slots[0].values.η")
    page.locator("[id='η0']").focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("walking.slots[0].values.η") < before
    assert page.evaluate("document.activeElement.id") == "η0"


LAYOUTS = [(768, "dark", "en-US"), (1200, "light", "en-US"), (360, "dark", "zh-CN")]


@pytest.mark.parametrize(("width", "scheme", "locale"), LAYOUTS)
def test_page_fits_and_is_readable(browser, width, scheme, locale):
    """No sideways scrolling, text of 11 pixels, contrast and names by axe-core; Chinese where the browser is."""
    opened = Opened(browser, viewport={"width": width, "height": 800}, color_scheme=scheme, locale=locale)
    page = opened.page
    assert page.evaluate("document.documentElement.lang.slice(0, 2)") == locale[:2]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll("body :not(svg, svg *), svg text")]
            .filter((node) => node.textContent.trim() && node.getBoundingClientRect().right > innerWidth + 1)
            .map((node) => node.outerHTML.slice(0, 100))"""
    )
    assert outside == []
    small = page.evaluate(
        """() => [...document.querySelectorAll("svg text")].filter((text) => text.textContent.trim()).map((text) => {
            const svg = text.ownerSVGElement;
            const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
            return scale * parseFloat(getComputedStyle(text).fontSize);
        }).filter((size) => size < 11)"""
    )
    assert small == []
    page.evaluate((TOP / "tests" / "vendor" / "axe.min.js").read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    problems = {each["id"]: [node["html"][:150] for node in each["nodes"]] for each in found["violations"]}
    assert problems == {}
    opened.context.close()
