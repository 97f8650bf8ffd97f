"""Each stage of both dvc.yaml declares the modules that decide its outputs: DVC skips a stage when another changed."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

TOP = Path(__file__).resolve().parents[1]

# What watches a training or shows its result, and cannot change a byte of it.
WATCHING = {
    "cache",
    "errors",
    "journal",
    "locks",
    "observers",
    "processes",
    "project",
    "runlog",
    "sending",
    "store",
    "tracking",
    "views",
    "__init__",
}
# download takes from `files` the text of an error only.
# evaluate draws figures for MLflow only, and imports what training.py imports, but builds no optimizer.
NOT_USED = {
    "download": {"config", "data", "files", "models", "optimizers"},
    "train": {"figures"},
    "evaluate": {"colours", "figures", "optimizers", "schedules"},
    "compare": {"models", "optimizers", "schedules", "training", "conditions", "weights"},
}


def imported(path):
    """Names of optlab's modules that a file imports, directly or through others."""
    todo, seen = [path], set()
    while todo:
        for node in ast.walk(ast.parse(todo.pop().read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module == "optlab":
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optlab."):
                names = [node.module.split(".")[1]]
            for name in names:
                if name not in seen and name not in WATCHING:
                    seen.add(name)
                    todo.append(TOP / "src" / "optlab" / f"{name}.py")
    return seen


@pytest.mark.parametrize("folder", [".", "tutorial"])
@pytest.mark.parametrize("stage", ["download", "train", "evaluate", "compare"])
def test_modules_are_declared(folder, stage):
    stages = YAML(typ="safe").load(TOP / folder / "dvc.yaml")["stages"]
    if stage not in stages:
        pytest.skip("this pipeline takes the data from the other one")
    declared = {Path(dep).stem for dep in stages[stage]["deps"] if "src/optlab/" in dep}
    needed = imported(TOP / "pipeline" / f"{stage}.py") - NOT_USED[stage]
    assert declared == needed
