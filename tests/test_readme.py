"""The README and the committed record say the same."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
README = (TOP / "README.md").read_text()


def test_its_table_is_the_record_s():
    table = [line for line in (TOP / "reports" / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) > 2
    assert "\n".join(table) in README


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_what_it_links_to_is_there(target):
    assert (TOP / target).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z]+)", README)) - {"and"}))
def test_the_make_targets_it_names_exist(target):
    assert re.search(rf"^{target}:", (TOP / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["determinism", "reliability"])
def test_every_test_that_a_table_names_is_there(name):
    text = (TOP / "docs" / f"{name}.md").read_text()
    path, named = None, re.findall(r"`(tests/[a-z_/]+\.py)?(?:::(\w+))?`", text)
    named = [pair for pair in named if any(pair)]
    assert len(named) > 8
    for given, test in named:
        path = TOP / given if given else path  # `::name` is of the file named before
        assert f"def {test}(" in path.read_text() if test else path.exists(), f"{path}::{test}"


def test_the_record_was_made_by_this_code():
    """dvc.lock names the MD5 of every module a stage depends on: an edit without a new record shows here."""
    import hashlib

    from ruamel.yaml import YAML

    for folder in (TOP, TOP / "tutorial"):
        for name, stage in YAML(typ="safe").load(folder / "dvc.lock")["stages"].items():
            for dep in stage["deps"]:
                path = folder / dep["path"]
                if path.suffix == ".py":
                    assert hashlib.md5(path.read_bytes()).hexdigest() == dep["md5"], f"{name}: {path}"
