"""The files around the code: the licence, what a contributor reads, the hooks. What they say is true."""

import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import optlab
from optlab.system import repository

TOP = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((TOP / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
GUIDE = (TOP / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("name", ["tutorial", *(f"studies/{each.name}" for each in (TOP / "studies").glob("*/"))])
def test_new_dvc_project_equals_committed_ones(tmp_path, monkeypatch, name):
    """Its settings and its links; what lies there stays."""
    committed, made = TOP / name, tmp_path / name
    (made / "custom").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    repository.make_dvc_project(Path(name))
    links = [Path("custom")]
    for path in sorted(each.relative_to(made) for each in made.rglob("*")):
        if (made / path).is_symlink():
            links.append(path)
            assert (made / path).readlink() == (committed / path).readlink()
        elif (made / path).is_file():
            assert (made / path).read_bytes() == (committed / path).read_bytes()
    assert (made / "custom").is_dir() and not (made / "custom").is_symlink()
    listed = subprocess.run(["git", "ls-files", "--stage", name], cwd=TOP, capture_output=True, text=True, check=True)
    in_git = re.findall(r"^120000 .*\t(.*)$", listed.stdout, re.MULTILINE)
    assert sorted(f"{name}/{each}" for each in links) == sorted(in_git)
    settings = [f"{name}/.dvc/{each}" for each in (".gitignore", "config")]
    assert all(f"\t{path}\n" in listed.stdout and (tmp_path / path).is_file() for path in settings)


def test_license_equals_apache_text():
    """SHA-256 of the text that apache.org publishes as LICENSE-2.0.txt."""
    digest = hashlib.sha256((TOP / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])


def test_pre_commit_hooks_equal_make_lint():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (TOP / "Makefile").read_text(), re.MULTILINE)[1]
    (local,) = YAML(typ="safe").load(TOP / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == [line.strip() for line in recipe.splitlines()]
    assert {(hook["language"], hook["pass_filenames"]) for hook in local["hooks"]} == {("system", False)}


def test_contributing_lists_all_packages_in_order():
    """Its table has the packages and modules that exist, in the order of the layers."""
    packages = re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)
    package = TOP / "src" / "optlab"
    modules = {path.stem for path in package.glob("[a-z]*.py")}
    assert set(packages) == {path.parent.name for path in package.glob("*/__init__.py")} | modules
    layers = SETTINGS["tool"]["importlinter"]["contracts"][0]["layers"]
    assert ["__main__", *packages, "_torchvision"] == layers  # which have no row


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", GUIDE))))
def test_contributing_links_exist(target):
    assert (TOP / target).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w./]+/)`|(tests/\w+\.py)", GUIDE))))
def test_contributing_paths_exist(path):
    assert (TOP / "".join(path)).exists()


def test_contributing_names_modules_that_exist():
    modules = re.findall(r"`(\w+/\w+\.py|records\.py)`", GUIDE)
    assert len(modules) > 7 and all((TOP / "src" / "optlab" / each).exists() for each in modules)
    assert "class EvalRecord" in (TOP / "src" / "optlab" / "records.py").read_text()


def test_contributing_tests_and_make_targets_exist():
    makefile = (TOP / "Makefile").read_text()
    targets = re.findall(r"(?:`|\$ )make ([a-z]+)", GUIDE)
    assert len(targets) > 4
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    named = re.findall(r"(tests/\w+\.py)::(\w+)", GUIDE)
    assert named and all(f"def {test}(" in (TOP / path).read_text() for path, test in named)


def test_contributing_fits_one_page():
    assert len(GUIDE.splitlines()) <= 70


def test_package_data_lists_all_data_files():
    """An installed package lacks a file that pyproject.toml does not name."""
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]
    files = [path for path in (TOP / "src" / "optlab").rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert len(files) > 4
    folders = {TOP / "src" / package.replace(".", "/"): own for package, own in patterns.items()}
    listed = {path for folder, own in folders.items() for pattern in own for path in folder.glob(pattern)}
    assert set(files) <= listed
    assert all((folder / "__init__.py").is_file() for folder in folders)  # of another folder, setuptools takes nothing


def test_version_is_consistent_across_files():
    latest = re.search(r"^## \[([\d.]+)\]", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    citation = YAML(typ="safe").load(TOP / "CITATION.cff")
    assert {PROJECT["version"], optlab.__version__, citation["version"]} == {latest}
    assert citation["license"] == PROJECT["license"]
