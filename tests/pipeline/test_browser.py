"""MLflow's pages of a finished comparison, as a browser with an empty profile shows them."""

import re
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIRST_COLUMNS = ["optimizer", "optimizer.lr", "test/accuracy"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def shown(reproduced):
    """The finished project, after two more calls of `show`: `dvc repro` has shown the comparison, too."""
    project, _ = reproduced
    for _ in range(2):
        assert project.run_forked("optlab", "show").returncode == 0
    return project


@pytest.fixture(scope="module")
def served(shown):
    """`optlab ui`, its address, and what it has printed until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["optlab", "ui", "--no-browser", "--port", str(port)], cwd=shown.top, env=shown.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    printed = []
    try:
        for line in process.stdout:
            printed.append(line)
            if "Ctrl-C" in line:
                break
        assert process.poll() is None, printed
        yield process, f"http://127.0.0.1:{port}", "".join(printed)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def open_page(browser, address, width=1400):
    """A page in an empty profile."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(address)
    yield page
    context.close()


def columns(page):
    """The names of the table's columns that are wholly visible, from left to right, after those that MLflow pins."""
    page.get_by_text("optimizer.lr", exact=True).wait_for()
    cells = page.locator(".ag-header-viewport .ag-header-cell")
    boxes = [(cell.bounding_box(), cell.inner_text().strip()) for cell in cells.all() if cell.is_visible()]
    width = page.viewport_size["width"]
    return [name for box, name in sorted(boxes, key=lambda each: each[0]["x"]) if box["x"] + box["width"] <= width]


def test_start_page_leads_to_curves_and_runs(served, browser):
    _, url, _ = served
    with open_page(browser, url) as page:
        page.locator(".js-plotly-plot .scatterlayer .js-line").first.wait_for(state="attached")
        page.locator(".js-plotly-plot .bars .point").first.wait_for(state="attached")
        charts = page.get_by_text(re.compile(r"^(step|test)/\w+$")).all_inner_texts()
        assert charts[:2] == ["step/validation_accuracy", "step/validation_loss"]
        page.get_by_role("link", name="Experiments").first.click()
        page.get_by_test_id("experiment-list-item-link").get_by_text("optlab", exact=True).click()
        assert columns(page)[:3] == FIRST_COLUMNS
        page.get_by_role("link", name="adam-0").click()
        page.get_by_text("Model metrics").click()
        page.locator(".js-plotly-plot .scatterlayer .js-line").first.wait_for(state="attached")
        titles = page.get_by_text(re.compile(r"^\w+_(loss|accuracy|second)$|^gradients$|^lr$")).all_inner_texts()
        assert titles[:4] == ["running_loss", "train_loss", "validation_accuracy", "validation_loss"]
        assert "lr" not in titles


def test_narrow_window_shows_first_columns(served, browser):
    _, url, _ = served
    with open_page(browser, f"{url}/#/experiments/1/runs", width=1000) as page:
        assert columns(page)[:3] == FIRST_COLUMNS


def test_plain_mlflow_ui_needs_one_click(served, browser):
    """The pages as `mlflow ui` serves them: without the script of this project's app."""
    _, url, _ = served

    def bare(route):
        route.fulfill(
            body=re.sub("(?s)<script>.*?</script>", "", route.fetch().text(), count=1), content_type="text/html"
        )

    with open_page(browser, "about:blank") as page:
        page.route(f"{url}/", bare)
        page.goto(url)
        page.get_by_text("Model training", exact=True).click()
        page.get_by_test_id("experiment-list-item-link").get_by_text("optlab", exact=True).click()
        page.get_by_role("button", name="Views").click()
        page.get_by_text("Comparison", exact=True).click()
        assert columns(page)[:3] == FIRST_COLUMNS


def test_champion_is_listed_among_models(served, browser):
    """With its metrics, and as the one version that is registered, after three calls of `show`."""
    _, url, _ = served
    with open_page(browser, f"{url}/#/experiments/1/models") as page:
        page.get_by_role("link", name=re.compile("optlab-cifar10")).wait_for()
        assert page.get_by_text(re.compile(r"^v\d+$")).all_inner_texts() == ["v1"]
        page.get_by_role("button", name="Columns").click()
        page.get_by_role("menu").get_by_text("No dataset").wait_for()  # what it calls metrics of no data set
        page.goto(f"{url}/#/models/optlab-cifar10")
        page.get_by_text("champion").first.wait_for()
        assert set(page.get_by_text(re.compile(r"^Version \d+$")).all_inner_texts()) == {"Version 1"}


def test_ui_prints_page_urls_and_stops_on_sigint(served, shown):
    """The last test of the server: it ends here."""
    process, url, printed = served
    assert [line.split("  ")[-1].strip() for line in printed.splitlines() if "/#/" in line] == [
        f"{url}/#/experiments/1/runs?compareRunsMode=CHART", f"{url}/#/experiments/1/runs",
        f"{url}/#/experiments/2/runs?compareRunsMode=CHART",
    ]  # fmt: skip
    used = shown.run_forked("optlab", "ui", "--no-browser", "--port", url.rpartition(":")[2])
    assert used.returncode == 1 and used.stderr.startswith("error: port ") and len(used.stderr.splitlines()) == 1
    elsewhere = shown.run_forked("optlab", "ui", "--no-browser", MLFLOW_TRACKING_URI=url)
    assert elsewhere.returncode == 0 and f"{url}/#/experiments/1/runs?viewStateShareKey" in elsewhere.stdout
    process.send_signal(signal.SIGINT)
    assert process.wait(240) == 130
    assert process.stdout.read() == ""
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(url.rpartition(":")[2])))
