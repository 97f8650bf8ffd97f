"""Packages and layers, and the code that each stage depends on."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

TOP = Path(__file__).resolve().parents[1]
STUDIES = ("tuned", "optimizers", "conv6", "caffe_quick", "airbench", "fast")
PACKAGE = TOP / "src" / "optlab"

# Packages and modules that a stage imports without declaring them: they check params.yaml, word messages, run
# processes, show progress, capture the environment or send to MLflow, and decide no byte of an output.
WATCHING = {"cli", "config", "environment", "orchestration", "preflight", "system", "tracking"}
# Modules that one stage imports and that decide nothing of its outputs: the name of the data set is a parameter, and
# the variables for the numerical libraries are set for the check of params.yaml.
NOT_USED = {"download": {"schema.optimizer", "schema.parameters", "schema.search_space", "training.numerics"}}
# Modules that a stage reaches through an executor.
STARTED = {"tune": ("tuning/session.py", "tuning/trial.py")}
MAX_CODE_PATHS = 6


def modules():
    """Every module of the package by its dotted name below optlab, such as `training.loop`."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imports(path):
    """The modules of the package that a file imports, by their dotted names."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "optlab":
            base = node.module.split(".")[1:]
            for alias in node.names:
                name = ".".join([*base, alias.name])
                yield name if name in known else ".".join(base)


def test_packages_have_docstrings():
    """In one sentence; `lint-imports` passes over a folder without an __init__.py."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert all(ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) for folder in folders)


def transitive_imports(stage):
    """The modules that a stage imports, directly or through others; those that only watch lead no further."""
    todo = [TOP / "pipeline" / f"{stage}.py", *(PACKAGE / each for each in STARTED.get(stage, ()))]
    seen = set()
    while todo:
        for name in imports(todo.pop()):
            if name not in seen and name not in WATCHING and name.split(".")[0] not in WATCHING:
                seen.add(name)
                todo.append(modules()[name])
    return seen


ELSEWHERE = ("tutorial", *(f"studies/{one}" for one in STUDIES))  # they take the data from the pipeline at the top


def load_stages(folder):
    return YAML(typ="safe").load(TOP / folder / "dvc.yaml")["stages"]


def list_code(folder, stage):
    """The files and folders of this repository's code that a stage declares; custom/ is a user's."""
    paths = [(TOP / folder / dep).resolve() for dep in stage.get("deps", ()) if "${" not in dep]
    return [path for path in paths if path.is_relative_to(TOP / "src") or path.is_relative_to(TOP / "pipeline")]


@pytest.mark.parametrize("folder", [".", *ELSEWHERE])
@pytest.mark.parametrize("stage", ["download", "tune", "train", "evaluate", "compare"])
def test_stage_declares_all_code_dependencies(folder, stage):
    stages = load_stages(folder)
    if stage == "download" and folder in ELSEWHERE:
        assert (
            stages[stage]["cmd"]
            == f"python -m dvc --wait-for-lock --cd {os.path.relpath('.', folder)} repro --quiet download"
        )
        return
    declared = list_code(folder, stages[stage])
    assert all(path.exists() for path in declared)
    missing = {
        name
        for name in transitive_imports(stage) - NOT_USED.get(stage, set())
        if not any(modules()[name].is_relative_to(path) for path in declared)
    }
    assert missing == set()


@pytest.mark.parametrize("folder", [".", *ELSEWHERE])
def test_stage_depends_on_few_paths_of_code_and_on_none_that_watches(folder):
    """Rewording an error in preflight, or adding a class to the tested ones, makes no stage stale."""
    for name, stage in load_stages(folder).items():
        declared = list_code(folder, stage)
        assert len(declared) <= MAX_CODE_PATHS, (name, declared)
        watching = [path for module, path in modules().items() if module.split(".")[0] in WATCHING]
        assert not [path for path in watching if any(path.is_relative_to(each) for each in declared)], name
    assert {"preflight.checks", "preflight.error_attribution"} <= modules().keys()
    assert "TESTED_CLASSES" in modules()["preflight.checks"].read_text()


def test_modules_of_stages_do_not_import_torch():
    """The stages set the variables that torch reads as it is imported."""
    names = sorted(path.stem for path in (TOP / "pipeline").glob("*.py"))
    program = f"import sys, {', '.join(names)}\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", program], cwd=TOP / "pipeline", capture_output=True, text=True)
    assert "train" in names and result.returncode == 0, result.stderr


def test_declared_code_is_imported_by_its_stage():
    """No stage depends on a module that it does not import."""
    for name, stage in load_stages(".").items():
        used = {modules()[each] for each in transitive_imports(name)}
        for path in list_code(".", stage):
            assert path.suffix != ".py" or path.is_relative_to(TOP / "pipeline") or path in used, (name, path)


def test_ray_is_imported_only_inside_functions():
    """Within functions: who has no cluster need not have it installed."""
    for path in modules().values():
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in top for alias in node.names} | {getattr(node, "module", "") for node in top}
        assert not [name for name in names if name and name.split(".")[0] == "ray"], path
