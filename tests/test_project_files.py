"""The files around the code: the licence, what a contributor reads, the hooks. What they say is true."""

import hashlib
import re
import tomllib
from pathlib import Path

from ruamel.yaml import YAML

import optlab

TOP = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((TOP / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]


def test_the_licence_is_apache_s_own_text():
    """SHA-256 of the text that apache.org publishes as LICENSE-2.0.txt."""
    digest = hashlib.sha256((TOP / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])


def test_the_hooks_are_the_linters_of_make_lint():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (TOP / "Makefile").read_text(), re.MULTILINE)[1]
    (local,) = YAML(typ="safe").load(TOP / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == [line.strip() for line in recipe.splitlines()]
    assert {(hook["language"], hook["pass_filenames"]) for hook in local["hooks"]} == {("system", False)}


def test_one_version_everywhere():
    latest = re.search(r"^## \[([\d.]+)\]", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    citation = YAML(typ="safe").load(TOP / "CITATION.cff")
    assert {PROJECT["version"], optlab.__version__, citation["version"]} == {latest}
    assert citation["license"] == PROJECT["license"]
