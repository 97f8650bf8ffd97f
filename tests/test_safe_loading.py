"""No file that is read can run code: `ruff` forbids what would let it, and what it cannot say is looked for here."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
FOLDERS = ("src/optlab", "pipeline", "tutorial", "custom")
SOURCES = [path for folder in FOLDERS for path in (TOP / folder).rglob("*.py")]

# Each is forbidden by the configuration of ruff in pyproject.toml.
FORBIDDEN = [
    "eval(text)",
    "exec(text)",
    "import pickle",
    "from pickle import loads",
    "import pickle as p; p.loads(content)",
    *(f"import {name}" for name in ("_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy")),
    "import yaml; yaml.safe_load(text)",
    "import torch; torch.load(path, weights_only=True)",
    "from torch import load",
    "import torch as t; t.jit.load(path)",
    "from torch.package import PackageImporter",
    "import numpy as np; np.load(path)",
    "import numpy; numpy.lib.format.read_array(file)",
    "import pandas; pandas.read_pickle(path)",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_ruff_bans_code_executing_loaders(folder):
    """Once with all the lines: the numbers of the flagged ones are those of all."""
    name = f"{folder}/module.py"
    command = [sys.executable, "-m", "ruff", "check", "--output-format=json", "--stdin-filename", name, "-"]
    result = subprocess.run(command, input="\n".join(FORBIDDEN), cwd=TOP, capture_output=True, text=True, check=False)
    found = [(each["code"], each["location"]["row"]) for each in json.loads(result.stdout)]
    flagged = {row for code, row in found if code == "TID251" or code.removeprefix("S").isdigit()}
    assert [line for number, line in enumerate(FORBIDDEN, 1) if number not in flagged] == []


def find_unsafe_calls(text):
    """What ruff has no rule for: keywords that allow or restrict pickles, `compile`, and YAML of an unsafe kind."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            yield node.arg
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "compile":
            yield "compile"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "YAML":
            kinds = [each.value for each in node.keywords if each.arg in ("typ", None)]
            if not all(isinstance(kind, ast.Constant) and kind.value in ("safe", "rt") for kind in kinds):
                yield "YAML of an unsafe kind"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_sources_contain_no_unsafe_loading(path):
    assert list(find_unsafe_calls(path.read_text())) == []


@pytest.mark.parametrize(
    "line", ["read_array(path, allow_pickle=True)", "compile(text, path, 'exec')", "ruamel.yaml.YAML(typ='unsafe')"]
)
def test_unsafe_call_scan_detects_known_cases(line):
    assert list(find_unsafe_calls(line))
