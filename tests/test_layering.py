"""The rooms of the house: each says what it is for, and a stage depends on what decides its outputs."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

TOP = Path(__file__).resolve().parents[1]
STUDIES = ("tuned", "optimizers", "conv6", "caffe_quick")
PACKAGE = TOP / "src" / "optlab"

# What a stage imports besides the files that it declares: what watches a training, shows its result or words a message,
# what refuses a params.yaml, and what has several trainings at work.
WATCHING = {
    "tracking", "system", "config.reading", "config.wording", "config.zoo", "execution.checked", "execution.cluster",
    "execution.cores", "execution.jobs", "execution.orders", "execution.pools", "execution.side_by_side",
}  # fmt: skip
# Imported without a part in what the stage writes.
_OPTIMIZERS = (
    "argument_types", "blame", "classes", "construction", "faults", "generators", "model_check", "models",
    "modules", "optimizers", "probing", "guards", "rates", "stepping", "uncompiled", "weights",
)  # fmt: skip
NOT_USED = {
    "download": {"config.entries", "config.parameters", "config.ranges", "training.numerics"},
    "tune": {"results.statistics"},
    "compare": {f"training.{name}" for name in (*_OPTIMIZERS, "loop", "schedules")},
}


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
    rooms = {path.parent for path in PACKAGE.rglob("*.py")}
    assert all(ast.get_docstring(ast.parse((room / "__init__.py").read_text())) for room in rooms)


def transitive_imports(path):
    """The modules that a file imports, directly or through others; those that only watch lead no further."""
    todo, seen = [path], set()
    while todo:
        for name in imports(todo.pop()):
            if name not in seen and name not in WATCHING and name.split(".")[0] not in WATCHING:
                seen.add(name)
                todo.append(modules()[name])
    return seen


ELSEWHERE = ("tutorial", *(f"studies/{one}" for one in STUDIES))  # they take the data from the pipeline at the top


@pytest.mark.parametrize("folder", [".", *ELSEWHERE])
@pytest.mark.parametrize("stage", ["download", "tune", "train", "evaluate", "compare"])
def test_stage_declares_all_code_dependencies(folder, stage):
    stages = YAML(typ="safe").load(TOP / folder / "dvc.yaml")["stages"]
    if stage not in stages:
        assert (stage, folder) in {("tune", "tutorial"), *(("download", each) for each in ELSEWHERE)}
        return
    declared = [(TOP / folder / dep).resolve() for dep in stages[stage]["deps"] if "src/optlab/" in dep]
    assert all(path.exists() for path in declared)
    missing = {
        name
        for name in transitive_imports(TOP / "pipeline" / f"{stage}.py") - NOT_USED.get(stage, set())
        if not any(modules()[name].is_relative_to(path) for path in declared)
    }
    assert missing == set()
    assert not any(path.is_relative_to(PACKAGE / room) for path in declared for room in ("system", "tracking"))


def test_ray_is_imported_only_inside_functions():
    """Within functions: who has no cluster need not have it installed."""
    for path in modules().values():
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in top for alias in node.names} | {getattr(node, "module", "") for node in top}
        assert not [name for name in names if name and name.split(".")[0] == "ray"], path
