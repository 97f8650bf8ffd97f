"""The README and the committed record say the same."""

import hashlib
import itertools
import json
import re
import subprocess
from pathlib import Path, PurePath

import pytest
from ruamel.yaml import YAML

from optlab.analysis import comparison
from optlab.analysis.verdicts import format_mean
from optlab.config import loader
from optlab.ranking.costs import read_costs
from optlab.ranking.protocol import compute_code_digest

TOP = Path(__file__).resolve().parents[1]
README, CHINESE = (TOP / "README.md").read_text(), (TOP / "README.zh.md").read_text()
DOCS = TOP / "docs"
STUDY = TOP / "studies" / "optimizers" / "reports"
LABELS = {
    "SGD": "sgd", "Momentum": "momentum", "Nesterov": "nesterov", "RMSprop": "rmsprop", "Adam": "adam",
    "AdamW": "adamw", "NAdam": "nadam", "Lion": "lion", "Muon": "muon", "Schedule-Free": "schedule_free",
}  # fmt: skip
SECTIONS = {
    "The answer": "结论",
    "Who it is for": "适合谁",
    "What you need": "环境要求",
    "Start": "开始",
    "What you see": "看结果",
    "Add your own optimizer": "加一个自己的优化器",
    "Reproduce a past run": "复现过去的一次训练",
    "How it works": "工作原理",
    "Documentation": "文档",
    "Why you might not want this": "什么时候不适合用",
    "Taking part, licence, citation": "参与、许可证、引用",
}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def tables(path: Path) -> list[str]:
    return [part for part in path.read_text().split("\n\n") if part.startswith("|")]


def figures(text: str) -> list[str]:
    """Each mean with half the width of its interval, and the ends of each interval of a difference."""
    found = re.findall(r"\d+\.\d\d ± \d+\.\d\d|−?\d+\.\d\d (?:to|到) −?\d+\.\d\d", " ".join(text.split()))
    return [each.replace("到", "to") for each in found]


def report_of(study: str) -> Path:
    return TOP / "studies" / study / "reports" / "comparison.md"


def test_readmes_are_short():
    assert len(README.split()) <= 1200
    assert len(CHINESE) <= 2000


def test_results_page_has_tables_of_committed_report():
    """The tables, and before them the verdict."""
    said = (TOP / "reports" / "comparison.md").read_text().split("\n\n")[0]
    found = tables(TOP / "reports" / "comparison.md")
    assert len(found) == 2
    for part in (said, *found):
        assert part in (DOCS / "results.md").read_text()


def test_chinese_results_page_has_table_of_committed_report():
    """The first table, with Chinese heads and words."""
    rows = tables(TOP / "reports" / "comparison.md")[0].splitlines()[2:]
    words = {" %": "%", "completed": "完成"}
    text = (DOCS / "results.zh.md").read_text()
    for row in rows:
        for english, chinese in words.items():
            row = row.replace(english, chinese)
        row = re.sub(r" \((\d) of (\d)\)", r"（\2 次中 \1 次）", row)
        assert row in text


def test_results_page_computes_minutes_from_measured_speeds():
    params = YAML(typ="safe").load(TOP / "params.yaml")
    runs = len(params["optimizers"]) * len(params["seeds"])
    images = runs * params["training"]["epochs"] * params["data"]["train_size"]
    for name in ("results.md", "results.zh.md"):
        text = (DOCS / name).read_text()
        assert f"{images:,}" in text
        for speed, source, minutes in ((2235, "RESULTS.md", 10), (1176, "RESULTS-AVX2.md", 20)):
            assert f"{speed:,}" in text
            assert f"at {speed} images/s" in (TOP / "benchmarks" / source).read_text()
            assert abs(images / speed / 60 - minutes) < 1
    assert "about 10 minutes on two cores with AVX-512, 20 without" in README
    assert "约 10 分钟，不支持 AVX-512 时约 20 分钟" in CHINESE


def test_readme_disk_and_speed_are_those_on_record():
    assert "1.8 GB" in README and "1.8 GB" in CHINESE and "1.8 GB" in (TOP / "Makefile").read_text()
    rows = [row for table in tables(TOP / "benchmarks" / "RESULTS-AVX2.md") for row in cells(table)]
    ratio = next(row[2] for row in rows if row[0] == "optlab fp32")
    assert f"[{float(ratio.split()[0]):.1f} times as fast](benchmarks/RESULTS-AVX2.md)" in README


def test_readme_answers_with_study_result():
    """The best mean, its distance to the second, the optimizers that the best is better than, and the others."""
    ranking, pairs = (cells(table) for table in tables(report_of("optimizers"))[:2])
    (best, *_), (second, *_) = ranking[2], ranking[3]
    mean = ranking[2][ranking[0].index("test accuracy")].removesuffix(" %")
    of_best = {row[0].removeprefix(f"{best} − "): row for row in pairs[2:] if row[0].startswith(f"{best} − ")}
    beaten = [name for name, row in of_best.items() if row[-1] == f"{best} better"]
    diverged = [row[0] for row in ranking[2:] if "diverged" in row[2]]
    difference = of_best[second][1].partition("(")[2].rstrip(")")
    assert len(of_best) + len(diverged) + 1 == len(ranking) - 2
    for text in (README, CHINESE):
        answer = text.split("\n## ")[1].partition("![")[0]
        assert figures(text) == figures(answer) == [mean, difference]
        said = dict.fromkeys(re.findall("|".join(sorted(LABELS, key=len, reverse=True)), answer))
        names, end = [LABELS[name] for name in said], 1 + len(beaten)
        assert names[:2] == [best, second] and set(names[1:end]) == set(beaten)
        assert set(names[end : len(names) - len(diverged)]) == set(of_best) - set(beaten)
        assert names[len(names) - len(diverged) :] == diverged


def test_studies_page_has_the_ten_optimizers():
    """Accuracies with the lowest and the highest run, steps and time to the target, and chosen rates."""
    folder = TOP / "studies" / "optimizers"
    compared = comparison.collect(loader.load(folder / "params.yaml"), folder)
    chosen = {row[0]: row[4] for row in cells(tables(STUDY / "tuning.md")[0])}
    costs = read_costs(TOP / "benchmarks" / "COSTS.md", compared.config)
    rows = []
    for row in compared.rows:
        values = sorted(compared.get_value(run) for run in compared.get_completed_runs(row.optimizer))
        steps = compared.target.compute_median_steps(row.optimizer)
        time = steps and f"{steps * ((row.gradients_per_step or 1) + costs[row.optimizer].share):,.0f}"
        rows.append(
            f"| {row.optimizer} | {format_mean(row.test_accuracy, 'test_accuracy')} | {100 * values[0]:.1f} to "
            f"{100 * values[-1]:.1f} % | {f'{steps:,}' if steps else '–'} | {time or '–'} | {chosen[row.optimizer]} |"
        )
    assert len(rows) == 10
    assert "\n".join(rows) in (TOP / "studies" / "README.md").read_text()


def test_experiments_page_counts_classes_of_benchmark():
    text = (TOP / "benchmarks" / "CLASSES-pytorch_optimizer.md").read_text()
    page = " ".join((DOCS / "experiments.md").read_text().split())
    trained, total, diverged = re.search(r"(\d+) of (\d+) train, .* besides: (\d+)\.", text).groups()
    assert f"Of the {total} classes of pytorch_optimizer, [{trained} train]" in page
    rows = cells(tables(TOP / "benchmarks" / "CLASSES-pytorch_optimizer.md")[0])[2:]
    in_later_step = [row for row in rows if row[2].startswith("step 9")]
    refused = int(total) - int(trained) - int(diverged) - len(in_later_step)
    assert (diverged, refused, len(in_later_step)) == ("1", 7, 1)
    assert "and one diverges. Seven are refused and one fails in its ninth step" in page


def test_results_page_names_reports_in_git():
    """All pipelines' but that of studies/tuned."""
    command = ["git", "ls-files", "*reports/report.html"]
    listed = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True).stdout.splitlines()
    folders = {path.parent.relative_to(TOP).as_posix() for path in TOP.glob("studies/*/dvc.yaml")} | {".", "tutorial"}
    assert folders - {PurePath(name).parents[1].as_posix() for name in listed} == {"studies/tuned"}
    page = " ".join((DOCS / "results.md").read_text().split())
    assert "report of this comparison, of the pipeline in `tutorial/` and of every study but `studies/tuned`" in page


@pytest.mark.parametrize(
    ("page", "study", "least"),
    [
        ("docs/optimizers.md", "optimizers", 10),
        ("docs/optimizers.zh.md", "optimizers", 10),
        ("studies/README.md", "*", 15),
        ("docs/experiments.md", "tuned", 1),
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
    "What three of them showed on airbench's network": ["fast"],
    "A published figure, met": ["caffe_quick"],
    "A network that reaches 94 % on a GPU": ["airbench"],
}


def test_studies_page_sections_use_own_study_numbers():
    _, *sections = re.split("^## ", (TOP / "studies" / "README.md").read_text(), flags=re.MULTILINE)
    for section in sections:
        studies = SECTION_STUDIES[section.partition("\n")[0]]
        own, *others = (report_of(each).read_text() for each in studies)
        foreign = [figure for figure in figures(section) if figure not in own]
        assert len(foreign) == len(others) and all(figure in others[0] for figure in foreign)


def test_pages_give_shares_of_muon_in_bf16_and_fp32():
    text = (TOP / "benchmarks" / "MUON.md").read_text()
    (zilliax, conv6, fast), (_, *in_fp32) = (
        [f"{float(share):.0f}" for share in re.findall(rf"^\| {name} \|.*\| (\S+) %", text, re.MULTILINE)]
        for name in ("muon", "muon_fp32")
    )
    names = ("docs/entries.md", "docs/optimizers.md", "docs/optimizers.zh.md", "studies/README.md")
    entries, *pages, studies = (" ".join((TOP / name).read_text().split()) for name in names)
    assert f"{conv6} % of the time for the gradient with `conv6`, and {fast} % with `fast`" in entries
    assert f"In fp32 it takes [{in_fp32[0]} and {in_fp32[1]} %]" in entries
    assert all(f"[{zilliax} %](../benchmarks/MUON.md)" in page for page in pages)
    assert f"({zilliax} % where" in studies and f"[{conv6} % of the time for a gradient]" in studies


def test_chinese_readme_has_same_section_order():
    english, chinese = (re.findall("^## (.*)$", text, re.MULTILINE) for text in (README, CHINESE))
    assert english == list(SECTIONS) and chinese == list(SECTIONS.values())


def test_verdicts_page_contains_simulation_tables():
    errors, trainings, _widths = tables(TOP / "benchmarks" / "SIMULATION.md")
    assert {errors, trainings} <= set(tables(TOP / "docs" / "verdicts.md"))
    shares = [float(cell.rstrip("%")) for row in cells(errors)[2:] for cell in (*row[3:5], row[6])]
    assert len(shares) == 54 and max(shares) <= 5.7


def test_tuning_page_has_figures_of_search_benchmark():
    """Regrets in the study's range, and coverages of all differences; a search for each seed keeps its 95 %."""
    own_range, *_, coverage = (cells(each) for each in tables(TOP / "benchmarks" / "SEARCH.md")[1:])
    regrets = {row[0]: row[2] for row in own_range[2:]}
    covered = {(row[0], row[1]): row[-1] for row in coverage[2:]}
    page = " ".join((TOP / "docs" / "tuning.md").read_text().split())
    lost = [regrets[rule] for rule in ("**new**, 16 trials", "old, 16 trials", "new, 8 trials")]
    assert (
        "ended {} points of accuracy below the best on average, and plain successive halving {}.".format(*lost[:2])
        in page
    )
    assert f"optlab's search loses {lost[2]} points, more than plain halving ({regrets['old, 8 trials']})" in page
    assert f"({lost[0]} points with it, {regrets['new without margin']} without)" in page
    own, shared = (covered[f"one for {whom}", "8"] for whom in ("each seed", "all seeds"))
    assert f"true differences in {own} % of the cases; after one search for all seeds, in {shared} %" in page
    assert min(float(share) for (kind, _), share in covered.items() if kind == "one for each seed") >= 94.3


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


def read_figure(text):
    """Return the same from a page's figure; dotted arrows lead to MLflow, which is no stage."""
    figure = re.search(r"```mermaid\nflowchart TB\n(.*?)```", text, re.DOTALL)[1]
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


@pytest.mark.parametrize("page", ["README.md", "docs/how-it-works.md"])
def test_figure_equals_dvc_yaml(page):
    """Stages, arrows, and the file names on them."""
    stages, passed = load_pipeline()
    drawn, arrows = read_figure((TOP / page).read_text())
    assert drawn == stages
    assert sorted(arrows) == sorted(passed)


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


def test_ranking_accepts_current_code(monkeypatch):
    """A change of the training's code adds its digest to ranking/protocol.yaml, or makes a new protocol."""
    monkeypatch.chdir(TOP)
    ranking = YAML(typ="safe").load(TOP / "ranking" / "protocol.yaml")
    assert compute_code_digest(Path(ranking["study"])) in ranking["code"]
