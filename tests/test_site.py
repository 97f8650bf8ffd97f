"""The documentation site: it builds without a warning, fetches nothing, and can be read on a phone and in the dark."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import test_readme
import torch
import write_commands
from ruamel.yaml import YAML

from optlab import records

TOP = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE_PAGES = ["index.html", "docs/verdicts.html", "docs/api.html", "benchmarks/RESULTS.html", "docs/tutorial.zh.html"]

needs_mkdocs = pytest.mark.skipif(
    find_spec("mkdocs") is None, reason="there is no MkDocs here: `make docs` installs it"
)


def build(config: Path, target: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*command, "--config-file", str(config), "--site-dir", str(target)],
        cwd=TOP, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = build(TOP / "mkdocs.yml", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser, path, width=1280, scheme="light"):
    """Open a file in an empty profile; return the page and the addresses that it asked for outside of the disk."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url) if request.url.startswith("http") else None)
    page.set_default_timeout(120_000)  # a machine may be busy
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    return page, asked


@needs_mkdocs
def test_site_has_page_for_each_document(site):
    documents = [*TOP.glob("docs/*.md"), *TOP.glob("benchmarks/*.md")]
    assert len(documents) > 20
    for path in documents:
        assert (site / path.relative_to(TOP).with_suffix(".html")).is_file(), path
    for name in ("index.html", "README.zh.html", "CONTRIBUTING.html", "studies/index.html", "params.yaml.html"):
        assert (site / name).is_file(), name
    assert '<html lang="zh"' in (site / "docs" / "tutorial.zh.html").read_text()


@needs_mkdocs
def test_site_sources_name_no_script_or_style_elsewhere(site):
    for path in site.rglob("*.html"):
        if "report" not in path.name:
            loaded = re.findall(r'<(?:script|link|img)\b[^>]*?(?:src|href)="(https?:[^"]+)"', path.read_text())
            assert loaded == [], path


@needs_mkdocs
def test_dead_links_and_anchors_fail_strict_build(tmp_path):
    """With the site's own settings, on two pages instead of all."""
    settings = (TOP / "mkdocs.yml").read_text().partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(re.sub("^watch: .*$", "watch: []", settings, flags=re.MULTILINE))
    shutil.copytree(TOP / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.md"))
    (tmp_path / "src").mkdir()
    page = tmp_path / "docs" / "page.md"
    (tmp_path / "README.md").write_text("# Home\n\n[page](docs/page.md#one-two)\n")
    page.write_text("# Page\n\n## One `two`\n\n[home](../README.md), [script](mkdocs_hooks.py)\n")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 0
    dead = ["missing.md", "page.md#missing", "../README.md#missing", "../missing/", "../src/missing.py"]
    page.write_text("# Page\n\n" + "".join(f"[x]({link})\n" for link in dead))
    result = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert result.returncode == 1
    for link in ["#one-two", *dead]:
        assert f"'{link}'" in result.stderr or f"'docs/page.md{link}'" in result.stderr, result.stderr


@needs_mkdocs
@pytest.mark.parametrize("name", WIDE_PAGES)
def test_page_fits_phone_and_fetches_nothing(site, browser, name):
    page, asked = open_page(browser, site / name, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert asked == []
    page.context.close()


@needs_mkdocs
def test_diagrams_are_drawn_without_network(site, browser):
    page, asked = open_page(browser, site / "docs" / "architecture.html")
    page.locator("div.mermaid").nth(2).wait_for()
    assert page.locator("pre.mermaid").count() == 0
    assert asked == []
    page.context.close()


@needs_mkdocs
def test_dark_mode_follows_system(site, browser):
    shades = []
    for scheme in ("light", "dark"):
        page, _ = open_page(browser, site / "docs" / "tuning.html", scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades.append(sum(int(each) for each in re.findall(r"\d+", colour)[:3]))
        page.context.close()
    assert shades[0] > 600 and shades[1] < 200


@needs_mkdocs
@pytest.mark.parametrize(
    ("words", "target"),
    [("Bonferroni", "docs/verdicts.html"), ("release", "docs/commands.html"), ("学习率", "docs/optimizers.zh.html")],
)
def test_search_finds_page_from_disk(site, browser, words, target):
    page, asked = open_page(browser, site / "index.html")
    page.locator(".md-search__input").fill(words)
    page.locator(f'.md-search-result__link[href*="{target}"]').first.wait_for(state="attached")
    assert asked == []
    page.context.close()


def test_commands_page_equals_help():
    assert write_commands.PAGE.read_text() == write_commands.format_commands(), "python docs/write_commands.py"


def read_diagrams():
    return re.findall(
        r"^```mermaid\n(.*?)^```", (TOP / "docs" / "architecture.md").read_text(), re.MULTILINE | re.DOTALL
    )


def test_architecture_diagram_has_all_stages_and_arrows():
    lines = [line.split(" --> ") for line in read_diagrams()[0].splitlines()[1:]]
    drawn = {(left.strip(), reader) for left, right in lines for reader in right.split(" & ")}
    _, passed = test_readme.load_pipeline()
    assert drawn == {(left.partition("@")[0], right.partition("@")[0]) for left, right, _ in passed}


def test_architecture_diagram_has_all_packages_in_order():
    settings = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["importlinter"]
    boxes = dict(re.findall(r'(\w+)\["([^"]+)"\]', read_diagrams()[2]))
    drawn = [package for box in boxes.values() for package in box.split(", ")]
    assert ["__main__", *drawn, "_torchvision"] == settings["contracts"][0]["layers"]


def test_files_page_names_outputs_and_classes():
    """Each output of dvc.yaml has a row, and each class exists."""
    text = (TOP / "docs" / "files.md").read_text()
    stages = YAML(typ="safe").load(TOP / "dvc.yaml")["stages"].values()
    outputs = [each for stage in stages for key in ("outs", "metrics") for each in stage.get(key, ())]
    assert len(outputs) > 15
    for each in outputs:
        name = (each if isinstance(each, str) else next(iter(each))).replace("${item.optimizer}-${item.seed}", "adam-0")
        assert f"`{name}`" in text or f"`{Path(name).name}`" in text or f"`{name}/" in text, name
    classes = re.findall(r"\| `(\w+)` \| git", text)
    assert len(set(classes)) == 6 and all(hasattr(records, each) for each in classes)


def test_guide_for_extensions_names_existing_code():
    text = (TOP / "docs" / "extend.md").read_text()
    paths = re.findall(r"`(src/optlab/[\w/]+\.py)`", text)
    assert len(paths) > 6
    code = "".join((TOP / path).read_text() for path in paths)
    names = {"compute_metrics": "def {}(", "EvalRecord": "class {}(", "DataConfig": "class {}(", "DIGESTS": "\n{} = ",
             "SPLIT_SIZES": "\n{} = "}  # fmt: skip
    for name, definition in names.items():
        assert f"`{name}`" in text and definition.format(name) in code, name
    scope = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope)
    assert scope["wide"]()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vendored_scripts_have_licence():
    scripts = list((TOP / "docs" / "vendor").glob("*.js"))
    assert len(scripts) == 2
    for path in scripts:
        assert "Permission is hereby granted" in (path.parent / f"{path.name.split('.')[0]}.LICENSE").read_text()


@pytest.mark.parametrize("name", ["ci", "docs"])
def test_workflow_commands_exist(name):
    """Every command of a workflow is a target of the Makefile, a file, or the project's own command."""
    makefile = (TOP / "Makefile").read_text()
    jobs = YAML(typ="safe").load(TOP / ".github" / "workflows" / f"{name}.yml")["jobs"]
    commands = [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    for words in commands:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[0] == "bash":
            assert (TOP / words[1]).is_file(), words
        else:
            assert words[0] in ("lscpu", ".venv/bin/optlab"), words


def test_workflow_tests_supported_pythons():
    check = YAML(typ="safe").load(TOP / ".github" / "workflows" / "ci.yml")["jobs"]["check"]
    assert check["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    (setup,) = [step["with"] for step in check["steps"] if "setup-python" in step.get("uses", "")]
    assert setup["cache"] == "pip"


def test_published_folder_is_what_make_docs_builds():
    steps = YAML(typ="safe").load(TOP / ".github" / "workflows" / "docs.yml")["jobs"]["publish"]["steps"]
    (published,) = [step["with"]["path"] for step in steps if "upload-pages" in step.get("uses", "")]
    assert re.search(rf"^site_dir: {published}$", (TOP / "mkdocs.yml").read_text(), re.MULTILINE)
