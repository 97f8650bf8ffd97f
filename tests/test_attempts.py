"""The list of attempts on a study: what counts as one, and how branches with lines of their own merge."""

import shutil
import subprocess
from pathlib import Path

import pytest

from optlab.orchestration import attempts
from optlab.orchestration.attempts import Attempt
from optlab.schema.parameters import Config
from optlab.system.errors import RecordError

TOP = Path(__file__).resolve().parents[1]
STUDY = Path("studies") / "small"
ENTRY = {"class": "Adam", "lr": {"log": [0.001, 0.1]}, "eps": {"log": [1e-9, 1e-7]}}
MODULES = {"custom/a.py": "1"}


def attempt(digest, *seeds, name="adan"):
    return Attempt(challenger=name, digest=digest * 16, seeds=list(seeds))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The folder of a study, in an empty repository that is the working directory."""
    monkeypatch.chdir(tmp_path)
    STUDY.mkdir(parents=True)
    return STUDY


# A list, an attempt, and its number.
NUMBERS = {
    "first": ([], attempt("a", 1, 2), 1),
    "edited": ([attempt("a", 1, 2)], attempt("b", 1, 2), 2),
    "repeated": ([attempt("a", 1, 2), attempt("b", 1, 2)], attempt("a", 1, 2), 1),
    "under another name": ([attempt("a", 1, 2, name="x"), attempt("b", 1, 2)], attempt("a", 1, 2), 1),
    "with seeds in another order": ([attempt("a", 1, 2), attempt("b", 1, 2)], attempt("a", 2, 1), 1),
    "on other seeds": ([attempt("a", 1, 2), attempt("b", 1, 2)], attempt("c", 3, 4), 1),
    "the same on other seeds": ([attempt("b", 1, 2), attempt("a", 1, 2)], attempt("a", 3, 4), 1),
    "on more seeds": ([attempt("a", 1, 2), attempt("c", 5, 6)], attempt("a", 1, 2, 3), 2),
    "after a line that a merge has left twice": ([attempt("a", 1), attempt("a", 1, name="x")], attempt("b", 1), 2),
}


@pytest.mark.parametrize(("known", "new", "number"), NUMBERS.values(), ids=NUMBERS)
def test_attempt_number_counts_edits_on_shared_seeds(known, new, number):
    assert attempts.find_number(known, new) == number
    assert attempts.find_number([*known, new], new) == number
    assert attempts.find_number([*known, new, attempt("f", *new.seeds)], new) == number  # a later one changes nothing


def test_attempt_is_recorded_once_as_one_line(study):
    for each in (attempt("a", 1, 2), attempt("b", 1, 2), attempt("a", 1, 2, name="x"), attempt("a", 3, 4)):
        attempts.record(study, each)
    text = (study / "attempts.yaml").read_text()
    header, lines = text.splitlines()[:2], text.splitlines()[2:]
    assert all(line.startswith("# ") for line in header) and "studies/small, in order" in header[0]
    assert lines == [
        '- {challenger: adan, digest: "aaaaaaaaaaaaaaaa", seeds: [1, 2]}',
        '- {challenger: adan, digest: "bbbbbbbbbbbbbbbb", seeds: [1, 2]}',
        '- {challenger: adan, digest: "aaaaaaaaaaaaaaaa", seeds: [3, 4]}',
    ]
    assert attempts.read(study) == [attempt("a", 1, 2), attempt("b", 1, 2), attempt("a", 3, 4)]


def compute_digest(small_config, entry=ENTRY, modules=MODULES, name="adam", **changes):
    return attempts.compute_digest(small_config(optimizers={name: entry}, **changes), name, modules)


def test_digest_covers_what_decides_the_runs(small_config):
    base = compute_digest(small_config)
    reordered = {key: ENTRY[key] for key in ("class", "eps", "lr")}  # the search draws other values
    others = [
        compute_digest(small_config, ENTRY | {"lr": {"log": [0.001, 0.2]}}),
        compute_digest(small_config, reordered),
        compute_digest(small_config, ENTRY | {"amsgrad": True}),
        compute_digest(small_config, modules={"custom/a.py": "2"}),
        compute_digest(small_config, training={"epochs": 2}),
        compute_digest(small_config, tuning={"seed": 1}),
    ]
    assert len({base, *others}) == 1 + len(others)
    assert compute_digest(small_config, name="x") == base
    assert compute_digest(small_config, seeds=[5, 6], verdict={"margin": 0.02}) == base
    assert compute_digest(small_config, data={"mirror_test": True}) == base
    assert isinstance(small_config(), Config) and len(base) == 16


LINE = '- {challenger: adan, digest: "aaaaaaaaaaaaaaaa", seeds: [1, 2]}\n'
DAMAGED = {
    "no YAML": (LINE + "- {challenger: adan\n", "attempts.yaml:3: damaged ("),
    "no list": ("challenger: adan\n", "attempts.yaml: damaged (Input should be a valid list)"),
    "an unknown key": (
        LINE + LINE.replace("seeds", "seed"),
        "attempts.yaml: attempt 2: damaged (seeds: Field required)",
    ),
    "no digest": (LINE.replace("a" * 16, "A"), "attempts.yaml: attempt 1: damaged (digest: String should match"),
    "no seeds": (LINE.replace("1, 2", ""), "attempts.yaml: attempt 1: damaged (seeds: List should have at least 1"),
    "no text": (b"\xff", "attempts.yaml: damaged ('utf-8' codec"),
}


@pytest.mark.parametrize(("content", "said"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_list_is_one_line_error(study, content, said):
    (study / "attempts.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecordError) as caught:
        attempts.record(study, attempt("b", 1))
    assert f"studies/small/{said}" in str(caught.value)
    assert str(caught.value).endswith("or the file with `git checkout studies/small/attempts.yaml`")


def test_conflict_markers_are_one_line_error(study):
    (study / "attempts.yaml").write_text(f"{LINE}<<<<<<< ours\n{LINE}=======\n{LINE}>>>>>>> theirs\n")
    with pytest.raises(
        RecordError, match=r"^studies/small/attempts.yaml:2: conflict markers .*: keep the lines of both"
    ):
        attempts.read(study)


def git(*words):
    options = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    result = subprocess.run(["git", *options, *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("base", [[], [attempt("e", 1)]], ids=["a new file", "a file with a line"])
def test_branches_with_attempts_merge_without_conflict(study, base):
    shutil.copy(TOP / ".gitattributes", ".")
    Path(".gitignore").write_text(".optlab\n")
    git("init", "-q")
    for each in base:
        attempts.record(study, each)
    for words in (["add", "-A"], ["commit", "-qm", "base"], ["branch", "theirs"]):
        git(*words)
    for branch, own in (("ours", (attempt("a", 1), attempt("b", 1))), ("theirs", (attempt("a", 1), attempt("c", 1)))):
        git("checkout", "-q", *(["-b"] if branch == "ours" else []), branch)
        for each in own:
            attempts.record(study, each)
        git("add", "-A")
        git("commit", "-qm", branch)
    git("checkout", "-q", "ours")
    git("merge", "-q", "--no-edit", "theirs")
    merged = attempts.read(study)
    assert [attempts.find_number(merged, each) for each in (attempt("a", 1), attempt("b", 1), attempt("c", 1))] == [
        len(base) + number for number in (1, 2, 3)
    ]
