"""report.html in a real browser: every control, both languages, no network, widths, contrast, and without scripts."""

import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_comparison import collect_with_scores

from optlab.analysis import comparison, figures, page
from optlab.analysis.verdicts import format_mean, summarize_verdicts
from optlab.config import loader

TOP = Path(__file__).resolve().parents[1]
AXE = TOP / "tests" / "vendor" / "axe.min.js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")


def collect(folder):
    return comparison.collect(loader.load(folder / "params.yaml"), folder)


@pytest.fixture(scope="module")
def study():
    """The comparison of ten optimizers, with a search for each of five seeds; one run of sgd diverged."""
    return collect(TOP / "studies" / "optimizers")


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    """A function that returns the address of a report; it is written once."""
    folder = tmp_path_factory.mktemp("reports")

    def get(name="study"):
        path = folder / f"{name}.html"
        if not path.exists():
            compared = study if name == "study" else collect(TOP)
            path.write_bytes(page.render(compared, figures.compute_curves(compared), folder))
        return path.as_uri()

    return get


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def open_page(browser, address, width=1200, **options):
    """Yield a page in a window of its own; it must request nothing but itself, and log no error."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    opened = context.new_page()
    opened.set_default_timeout(180_000)
    opened.set_default_navigation_timeout(120_000)
    requested, errors = [], []
    opened.on("request", lambda request: requested.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text))
    opened.goto(address)
    yield opened
    context.close()
    assert requested == [address.partition("#")[0]] and errors == []


@pytest.fixture(scope="module")
def shared(browser, report):
    """One page of the study for the tests that leave it as they find it."""
    with open_page(browser, report()) as opened:
        yield opened


def count_paths(opened, figure):
    """The lines of a figure: paths that are not filled and belong to no axis."""
    return opened.locator(f"#{figure} g[fill=none] > path[stroke]").count()


def read_column(opened, table, column):
    cells = opened.locator(f"#{table} tbody tr:not([hidden]) > :nth-child({column})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_first_screen_has_answer_and_ranking(shared, study):
    verdict, figure = shared.locator(".verdict"), shared.locator("#ranking svg")
    assert verdict.inner_text().startswith(summarize_verdicts(study).headline)
    assert figure.bounding_box()["y"] + figure.bounding_box()["height"] < 900
    names = figure.locator("text").all_text_contents()
    assert [name for name in names if name in study.colours] == [row.optimizer for row in study.rows]
    dots = figure.locator("circle").count()
    assert dots == sum(run.status == "completed" for run in study.runs) == 49


def test_hover_shows_values(shared, study):
    """Of nadam's seed that broke down, far from all others."""
    lowest = min(study.get_completed_runs("nadam"), key=study.get_value)
    dots = shared.locator(f"#ranking circle[fill='{study.colours['nadam']}']").all()
    min(dots, key=lambda dot: float(dot.get_attribute("cx"))).hover(force=True)
    tip = shared.locator("#ranking g[aria-label=tip]").text_content().strip("\u200b").split("\u200b")
    value = f"seed {lowest.files.seed}: {100 * study.get_value(lowest):.2f} %"
    (mean,) = (row.test_accuracy for row in study.rows if row.optimizer == "nadam")
    assert tip == ["nadam", value, f"mean: {format_mean(mean, 'test_accuracy')}"]


def test_click_hides_and_shows_optimizer(shared):
    button = shared.locator("#legend button", has_text="lion")
    assert count_paths(shared, "curve-validation_loss") == 10
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert count_paths(shared, "curve-validation_loss") == 9
    shared.locator("#show-none").click()
    assert count_paths(shared, "curve-validation_loss") == 0
    assert "No optimizer is shown." in shared.locator("#curve-validation_loss").inner_text()
    shared.locator("#show-all").press("Enter")
    assert count_paths(shared, "curve-validation_loss") == 10


def read_axis(opened, figure):
    return opened.locator(f"#{figure} svg text").all_text_contents()


def test_axes_lines_and_outliers_follow_their_controls(shared, study):
    def choose(name, value):
        shared.locator(f"#curve-controls [name={name}][value={value}]").check()

    curve = "curve-train_loss"
    before = read_axis(shared, curve)
    assert any("epoch" in text for text in before)
    choose("x", "step")
    assert any("step" in text for text in read_axis(shared, curve)) and "1,400" in " ".join(read_axis(shared, curve))
    choose("x", "gradients")
    assert any("gradients computed" in text for text in read_axis(shared, curve))
    choose("x", "epoch")
    assert read_axis(shared, curve) == before
    choose("y", "log")
    assert read_axis(shared, curve) != before
    choose("y", "linear")
    note = shared.locator(f"#{curve} .note")
    outside, total = map(int, re.match(r"(\d+) of (\d+) values lie outside the axis\.", note.inner_text()).groups())
    assert 0 < outside < total / 10
    choose("outliers", "show")
    assert note.count() == 0 and read_axis(shared, curve) != before
    choose("outliers", "cut")
    assert count_paths(shared, curve) == 10
    choose("lines", "seeds")
    assert count_paths(shared, curve) == len(study.runs)
    choose("lines", "mean")


def test_ticks_of_close_values_differ(browser, small_config, tmp_path):
    scores = {"adam": [0.7001, 0.7003, 0.7002], "sgd": [0.7004, 0.7006, 0.7005]}
    compared = collect_with_scores(small_config, tmp_path, scores, {}, "validation_accuracy")
    path = tmp_path / "report.html"
    path.write_bytes(page.render(compared, figures.compute_curves(compared), tmp_path))
    with open_page(browser, path.as_uri()) as opened:
        ticks = [text for text in read_axis(opened, "ranking") if text.endswith(" %")]
    assert len(ticks) == len(set(ticks)) > 2


def test_table_sorts_by_mouse_and_keyboard(shared, study):
    names = [row.optimizer for row in study.rows]
    assert read_column(shared, "optimizers", 1) == names  # by the verdict's metric
    header = shared.locator("#optimizers th", has_text="test accuracy")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending" and read_column(shared, "optimizers", 1) == names
    header.locator("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending" and read_column(shared, "optimizers", 1) == names[::-1]
    first = shared.locator("#optimizers th").first
    first.locator("button").press(" ")
    assert first.get_attribute("aria-sort") == "ascending" and header.get_attribute("aria-sort") is None
    assert read_column(shared, "optimizers", 1) == sorted(names)
    header.locator("button").click()


def test_filter_hides_other_rows(shared):
    shared.locator("#pairs summary").click()
    box = shared.locator("[data-filter=pair-table]")
    box.fill("Lion")
    found = read_column(shared, "pair-table", 1)
    assert len(found) == 8 and all("lion" in pair for pair in found)
    box.fill("")
    assert len(read_column(shared, "pair-table", 1)) == 36


def test_pair_opens_with_values_of_every_seed(shared, study):
    names = ("muon", "lion")
    pair = study.pairs[names]
    cell = shared.locator("#pairs .matrix td.better button").first
    assert cell.get_attribute("aria-label") == f"muon − lion: {100 * pair.difference:.2f} ▲"
    cell.press("Enter")
    dialog = shared.locator("dialog[open]")
    text = dialog.inner_text()
    assert f"{100 * pair.difference:.2f} points ({100 * pair.low:.2f} to {100 * pair.high:.2f})" in text
    assert f"{pair.p:.2g}" in text and "Welch's t test" in text
    values = list(zip(*(study.get_values(name) for name in names), strict=True))
    rows = [
        [str(seed), *(f"{100 * value:.2f} %" for value in both)]
        for seed, both in zip(study.config.seeds, values, strict=True)
    ]
    found = [row.split("\t") for row in dialog.locator("#pair-seeds").inner_text().split("\n")]
    assert found == [["seed", *names], *rows]
    assert dialog.locator("#pair-chart svg[role=img]").count() == 1
    shared.keyboard.press("Escape")
    assert dialog.count() == 0
    shared.locator("#pair-table tbody button").last.click()
    assert shared.locator("#pair-title").inner_text() == " − ".join(list(study.pairs)[-1])
    shared.locator("#pair-close").click()
    assert dialog.count() == 0


def test_confusion_matrix_is_chosen(shared):
    shared.locator("#classes summary").click()
    shared.locator("#confusion-choice").select_option("sgd")
    visible = [each for each in shared.locator(".confusion-box").all() if each.is_visible()]
    assert [each.locator("caption").inner_text()[:4] for each in visible] == ["sgd:"]


def test_every_trial_is_drawn(shared, study):
    for name, tuning in study.tunings.items():
        own = shared.locator(f"#rate-{name} svg g[fill='{study.colours[name]}'] > *").count()
        assert own == sum(trial.status != "diverged" for trial in tuning.trials)


def list_small_texts(opened):
    """Texts in figures whose letters are smaller than 11 pixels on the screen."""
    return opened.evaluate("""() => [...document.querySelectorAll("figure svg text, figure svg tspan")]
        .filter((each) => each.textContent.trim() && each.getBoundingClientRect().width)
        .map((each) => [each.textContent, parseFloat(getComputedStyle(each).fontSize) * (each.getScreenCTM()?.a ?? 1)])
        .filter(([, size]) => size < 11)""")


@pytest.mark.parametrize("width", [360, 768, 1200])
@pytest.mark.parametrize("name", ["study", "top"])
def test_page_fits_window(browser, report, name, width):
    with open_page(browser, report(name), width) as opened:
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert list_small_texts(opened) == []
        for column in (1, 2):  # name and deciding value
            box = opened.locator(f"#optimizers tbody tr:first-child td:nth-child({column})").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
        opened.set_viewport_size({"width": 500, "height": 900})
        opened.wait_for_function("document.querySelector('#ranking svg').getBoundingClientRect().width <= 500")


CJK = re.compile("[\u4e00-\u9fff]")


def test_language_follows_browser_address_and_button(browser, report):
    with open_page(browser, report("top"), locale="zh-CN") as opened:
        assert opened.evaluate("document.documentElement.lang") == "zh" and CJK.search(opened.title())
        labels = opened.locator("h1, h2, h3, legend, figcaption, summary, thead th, .verdict, #curve-controls label")
        texts = [text.strip() for text in labels.all_inner_texts() if text.strip()]
        english = {text for text in texts if not CJK.search(text)}
        assert len(texts) > 40 and english <= {"n", "p", "params.yaml", "adamw", "adam", "sgd"}
        opened.locator("#language").click()
        assert opened.evaluate("document.documentElement.lang") == "en"
        assert not CJK.search(opened.locator("main").inner_text())
        assert opened.locator("#language").inner_text() == "中文" and not CJK.search(opened.title())
    with open_page(browser, report("top") + "#zh", locale="en-US") as opened:
        assert CJK.search(opened.locator(".verdict").inner_text())
        assert "测试准确率" in opened.locator("#ranking svg").text_content()


@pytest.mark.parametrize("width", [360, 1200])
def test_page_without_scripts_has_tables_and_pictures(browser, report, study, width):
    with open_page(browser, report(), width, java_script_enabled=False, locale="zh-CN") as opened:
        assert opened.locator(".verdict").inner_text().startswith(summarize_verdicts(study).headline)
        pictures = opened.locator(".picture svg").all()
        assert len(pictures) == 15 and all(each.is_visible() for each in pictures)
        assert opened.locator("#optimizers tbody tr").count() == 10
        assert opened.locator("button:visible, input:visible, select:visible").count() == 0
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert not CJK.search(opened.locator("main").inner_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(browser, report, scheme):
    with open_page(browser, report("top"), color_scheme=scheme) as opened:
        for summary in opened.locator("summary").all():
            if not summary.evaluate("(each) => each.parentElement.open"):
                summary.click()
        opened.locator(".matrix button").first.click()
        opened.evaluate(AXE.read_text())
        found = []
        for context in ("dialog", "main, body > header"):
            if context != "dialog":
                opened.keyboard.press("Escape")
            result = opened.evaluate("(where) => axe.run(where)", context)
            found += [(each["id"], each["nodes"][0]["html"][:200]) for each in result["violations"]]
        assert found == []


def test_page_prints_all_tables(shared):
    shared.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert shared.locator("details:not([open])").count() == 0
    shared.emulate_media(media="print", color_scheme="dark")
    assert shared.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not shared.locator("nav").is_visible()
    shared.emulate_media(media="screen")
