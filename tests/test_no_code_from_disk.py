"""No file that is read can run code: the sources call nothing that would let it."""

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("src/optlab", "pipeline", "tutorial") for path in (TOP / folder).glob("*.py")]

# archives.py reads the pickles of the official archive by a reader that refuses all but numpy's arrays.
PICKLE_READER = {"archives.py": {"pickle.Unpickler", "pickle.UnpicklingError"}}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "torch.load", "torch.jit.load", "torch.package.PackageImporter",
                   "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "runpy.run_path", "marshal.load",
                   "marshal.loads", "shelve.open"}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy"}


def offences(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
            yield ast.unparse(node.func)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            yield node.arg
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle."):
            if ast.unparse(node) not in PICKLE_READER.get(path.name, ()):
                yield ast.unparse(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.split(".")[0] in FORBIDDEN_MODULES and path.name not in PICKLE_READER:
                    yield f"import {name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "YAML":
            kinds = [each.value for each in node.keywords if each.arg == "typ"]
            if not all(isinstance(kind, ast.Constant) and kind.value in ("safe", "rt") for kind in kinds):
                yield "YAML of an unsafe kind"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_that_is_read_is_run(path):
    assert list(offences(path)) == []


@pytest.mark.parametrize("line", ["torch.load(path)", "eval(text)", "import pickle", "from pickle import loads",
                                  "np.load(path, allow_pickle=True)", "YAML(typ='unsafe')"])  # fmt: skip
def test_the_search_finds_what_it_should(tmp_path, line):
    (tmp_path / "module.py").write_text(line)
    assert list(offences(tmp_path / "module.py"))
