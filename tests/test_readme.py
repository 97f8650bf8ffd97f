"""The README and the committed record say the same."""

import hashlib
import itertools
import json
import re
from pathlib import Path, PurePath

import pytest
from ruamel.yaml import YAML

TOP = Path(__file__).resolve().parents[1]
README, CHINESE = (TOP / "README.md").read_text(), (TOP / "README.zh.md").read_text()
STUDY = TOP / "studies" / "optimizers" / "reports"
SECTIONS = {  # of both; the rest is told in English only
    "Run it yourself": "自己跑一遍", "Change something": "改一改", "Reproduce a past run": "复现过去的一次训练",
    "Look at the results": "看结果",
}  # fmt: skip


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def tables(path: Path) -> list[str]:
    return [part for part in path.read_text().split("\n\n") if part.startswith("|")]


def figures(text: str) -> list[str]:
    """Each mean or difference with its interval."""
    return re.findall(r"\d+\.\d\d ± \d+\.\d\d", text)


def report_of(study: str) -> Path:
    return TOP / "studies" / study / "reports" / "comparison.md"


def test_readme_table_equals_committed_report():
    """The tables, and before them the verdict."""
    said = (TOP / "reports" / "comparison.md").read_text().split("\n\n")[0]
    found = tables(TOP / "reports" / "comparison.md")
    assert len(found) == 2
    for part in (said, *found):
        assert part in README
    assert found[0] in CHINESE


def test_readme_begins_with_study_result():
    """Its first sentence, each accuracy and what the tuning found, and no figure that the study does not have."""
    report = report_of("optimizers")
    assert report.read_text().partition(". Beaten")[0] in README
    head, *compared = cells(tables(report)[0])
    chosen = {row[0]: row[3] for row in cells(tables(STUDY / "tuning.md")[0])}
    place = head.index("test accuracy")
    rows = [f"| {row[0]} | {row[place]} | {chosen[row[0]]} |" for row in compared[1:]]
    for text in (README, CHINESE):
        beginning = re.split("^## ", text, flags=re.MULTILINE)[0]
        assert "\n".join(rows) in beginning
        for part in beginning.split("\n\n"):
            own = report_of("conv6") if "conv6" in part else report
            assert all(figure in own.read_text() for figure in figures(part))


@pytest.mark.parametrize(
    ("page", "study", "least"),
    [
        ("docs/optimizers.md", "optimizers", 10),
        ("docs/optimizers.zh.md", "optimizers", 10),
        ("studies/README.md", "*", 15),
    ],
)
def test_page_numbers_come_from_study_reports(page, study, least):
    report = "".join(path.read_text() for path in (TOP / "studies").glob(f"{study}/reports/comparison.md"))
    said = figures((TOP / page).read_text())
    assert len(said) > least
    assert all(figure in report for figure in said)


SECTION_STUDIES = {
    "What the ten optimizers showed": ["optimizers"],
    "What three of them showed on a stronger network": ["conv6", "optimizers"],
    "A published figure, met": ["caffe_quick"],
}


def test_studies_page_sections_use_own_study_numbers():
    _, *sections = re.split("^## ", (TOP / "studies" / "README.md").read_text(), flags=re.MULTILINE)
    for section in sections:
        studies = SECTION_STUDIES[section.partition("\n")[0]]
        own, *others = (report_of(each).read_text() for each in studies)
        foreign = [figure for figure in figures(section) if figure not in own]
        assert len(foreign) == len(others) and all(figure in others[0] for figure in foreign)


def test_chinese_readme_has_same_section_order():
    english, chinese = (re.findall("^## (.*)$", text, re.MULTILINE) for text in (README, CHINESE))
    assert [SECTIONS[title] for title in english if title in SECTIONS] == chinese


def test_verdicts_page_contains_simulation_table():
    table = re.search(r"\| seeds.*", (TOP / "benchmarks" / "SIMULATION.md").read_text(), re.DOTALL)[0]
    assert table.strip() in (TOP / "docs" / "verdicts.md").read_text()


def load_pipeline():
    """Return the names of dvc.yaml's stages, and (stage, next stage, file) for each file that the next one reads."""
    stages = YAML(typ="safe").load(TOP / "dvc.yaml")["stages"]
    names = {
        name: name + "@" * ("matrix" in stage) + "-".join(f"{{{key}}}" for key in stage.get("matrix", ()))
        for name, stage in stages.items()
    }
    passed = []
    for name, stage in stages.items():
        for each in stage.get("outs", []) + stage.get("metrics", []):
            out = PurePath(each if isinstance(each, str) else next(iter(each)))
            file = re.sub(r"\$.*\}", "*", out.name)
            readers = [other for other in stages if any(out.is_relative_to(dep) for dep in stages[other]["deps"])]
            passed += [(names[name], names[reader], file) for reader in readers]
    return set(names.values()), passed


def read_figure():
    """Return the same from the README's figure; dotted arrows lead to MLflow, which is no stage."""
    figure = re.search(r"```mermaid\nflowchart TB\n(.*?)```", README, re.DOTALL)[1]
    labels = dict(re.findall(r'(\w+)\["(.+?)"\]', figure))
    stages, passed = set(), []
    for line in re.sub(r"\[.+?\]", "", figure).splitlines():
        left, files, right = re.fullmatch(r' +(.+) (?:-- "?(.+?)"? -->|-\.->) (.+)', line).groups()
        makers, readers = ([labels.get(each, each) for each in side.split(" & ")] for side in (left, right))
        if files:
            passed += itertools.product(makers, readers, files.split(", "))
            stages.update(makers, readers)
        else:
            assert readers == ["MLflow"]
            stages.update(makers)
    return stages, passed


def test_readme_figure_equals_dvc_yaml():
    """Stages, arrows, and the file names on them."""
    stages, passed = load_pipeline()
    drawn, arrows = read_figure()
    assert drawn == stages
    assert sorted(arrows) == sorted(passed)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z]+)", README)) - {"and"}))
def test_readme_make_targets_exist(target):
    assert re.search(rf"^{target}:", (TOP / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["determinism", "reliability"])
def test_docs_name_existing_tests(name):
    text = (TOP / "docs" / f"{name}.md").read_text()
    path, named = None, re.findall(r"`(tests/[a-z_/]+\.py)?(?:::(\w+))?`", text)
    named = [pair for pair in named if any(pair)]
    assert len(named) > 8
    for given, test in named:
        path = TOP / given if given else path  # `::name` is of the file named before
        assert f"def {test}(" in path.read_text() if test else path.exists(), f"{path}::{test}"


def md5(path):
    """DVC's digest of a file, or of a folder: that of the list of its files, without those that .dvcignore names."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    ignored = ("__pycache__", ".gitignore", "custom/README.md")
    files = [
        each for each in sorted(path.rglob("*")) if each.is_file() and not any(name in str(each) for name in ignored)
    ]
    listed = sorted(({"md5": md5(each), "relpath": each.relative_to(path).as_posix()} for each in files),
                    key=lambda entry: tuple(entry["relpath"].split("/")))  # fmt: skip
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


@pytest.mark.parametrize("folder", [".", "tutorial"])
def test_committed_record_matches_current_code(folder):
    """dvc.lock names the digest of all code that a stage depends on: an edit without a new record shows here."""
    seen = set()
    for name, stage in YAML(typ="safe").load(TOP / folder / "dvc.lock")["stages"].items():
        for dep in stage.get("deps", ()):
            path = (TOP / folder / dep["path"]).resolve()
            if path.is_relative_to(TOP / "src") or path.suffix == ".py" or path.name == "custom":
                assert md5(path) == dep["md5"], f"{name}: {path}"
                seen.add(path.name)
    assert {"training", "records.py", "custom", "compare.py"} <= seen
