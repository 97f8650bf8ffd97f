"""What a command adds to params.yaml leaves the rest of the file as it was."""

import pytest
from ruamel.yaml import YAML

from optlab.config import loader, params_editor
from optlab.system.errors import ConfigError

HEAD = """# All of it.
model: zilliax   # the network
seeds: [0]
data: {train_size: 100, validation_size: 20}
training: {epochs: 1, batch_size: 16, threads: 2}
"""
ADDED = "  lion: {class: pytorch_optimizer.Lion, lr: 0.0001}  # Chen\n"

# What the optimizers look like → what they look like after the addition.
LAYOUTS = {
    "one line each": (
        "optimizers:\n  sgd: {class: SGD, lr: 0.01}  # plain\n  # adam: {class: Adam}\n\n# The end.\n",
        "optimizers:\n  sgd: {class: SGD, lr: 0.01}  # plain\n" + ADDED + "  # adam: {class: Adam}\n\n# The end.\n",
    ),
    "a line for each key": (
        "optimizers:\n  sgd:\n    class: SGD\n    lr: 0.01\n\n  # done\nverdict: {margin: 0.01}\n",
        "optimizers:\n  sgd:\n    class: SGD\n    lr: 0.01\n" + ADDED + "\n  # done\nverdict: {margin: 0.01}\n",
    ),
    "braces over several lines": (
        "optimizers:\n  sgd: {class: SGD,\n    lr: 0.01}\nverdict: {margin: 0.01}\n",
        "optimizers:\n  sgd: {class: SGD,\n    lr: 0.01}\n" + ADDED + "verdict: {margin: 0.01}\n",
    ),
    "a list at the end": (
        "optimizers:\n  sgd:\n    class: SGD\n    groups:\n    - {ndim: 1, lr: 0.1}\n# end\n",
        "optimizers:\n  sgd:\n    class: SGD\n    groups:\n    - {ndim: 1, lr: 0.1}\n" + ADDED + "# end\n",
    ),
    "no line's end at the end": (
        "optimizers:\n  sgd: {class: SGD, lr: 0.01}", "optimizers:\n  sgd: {class: SGD, lr: 0.01}\n" + ADDED
    ),
    "wider": (
        "optimizers:\n      sgd: {class: SGD, lr: 0.01}\n",
        "optimizers:\n      sgd: {class: SGD, lr: 0.01}\n    " + ADDED,
    ),
    "all in braces": (
        "optimizers: {sgd: {class: SGD, lr: 0.01}}  # one\nverdict: {margin: 0.01}\n",
        "optimizers: {sgd: {class: SGD, lr: 0.01}, lion: {class: pytorch_optimizer.Lion, lr: 0.0001}}  # one\n"
        "verdict: {margin: 0.01}\n",
    ),
    "Windows' lines": (
        "optimizers:\r\n  sgd: {class: SGD, lr: 0.01}\r\n",
        "optimizers:\r\n  sgd: {class: SGD, lr: 0.01}\r\n" + ADDED.replace("\n", "\r\n"),
    ),
}  # fmt: skip


@pytest.fixture
def write_params(tmp_path, monkeypatch):
    """A function that writes a params.yaml with these optimizers, and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(optimizers):
        path = tmp_path / "params.yaml"
        path.write_bytes((HEAD + optimizers).encode())
        return path

    return write


@pytest.mark.parametrize(("before", "after"), LAYOUTS.values(), ids=LAYOUTS)
def test_added_entry_leaves_other_bytes_unchanged(write_params, before, after):
    path = write_params(before)
    params_editor.add_entry(path, "lion", "{class: pytorch_optimizer.Lion, lr: 0.0001}", "Chen")
    assert path.read_bytes().decode() == HEAD + after
    assert list(loader.load(path).optimizers) == ["sgd", "lion"]


REFUSED = {
    "an entry of that name": ("optimizers:\n  lion: {class: SGD}\n", "optimizers.lion is there already"),
    "a file that is wrong": ("optimizers:\n  sgd: {lr: 0.01}\n", "optimizers.sgd.class: missing"),
    "an alias": (
        "spare: &all\n  sgd: {class: SGD}\noptimizers: *all\n", "spare: unknown key"
    ),
    "a merged mapping": (
        "optimizers:\n  sgd: &own {class: SGD, lr: 0.01}\n  adam:\n    <<: *own\n    class: Adam", None
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "said"), REFUSED.values(), ids=REFUSED)
def test_refused_entry_leaves_params_unchanged(write_params, before, said):
    path = write_params(before)
    if said is None:
        params_editor.add_entry(path, "lion", "{class: Adam}")
        assert list(loader.load(path).optimizers) == ["sgd", "adam", "lion"]
        return
    with pytest.raises(ConfigError, match=said):
        params_editor.add_entry(path, "lion", "{class: Adam}")
    assert path.read_bytes().decode() == HEAD + before


REST = """# All of it.
model: zilliax   # the network
data: {train_size: 100, validation_size: 20}
training: {epochs: 1, batch_size: 16, threads: 2}
optimizers: {sgd: {class: SGD, lr: 0.01}}
"""
# What the seeds look like → what they look like when there are four of them.
SEEDS = {
    "brackets": ("seeds: [0, 1]   # two\n", "seeds: [0, 1, 2, 3]   # two\n"),
    "not in order": ("seeds: [7, 3]\n", "seeds: [7, 3, 8, 9]\n"),
    "brackets over several lines": ("seeds: [0,\n  1,\n  ]\n", "seeds: [0,\n  1, 2, 3,\n  ]\n"),
    "a line each": ("seeds:\n  - 0\n  - 1  # x\n\n# y\n", "seeds:\n  - 0\n  - 1  # x\n  - 2\n  - 3\n\n# y\n"),
    "a line each, not indented": ("seeds:\n- 0\n- 1\n", "seeds:\n- 0\n- 1\n- 2\n- 3\n"),
    "Windows' lines": ("seeds:\r\n-  0\r\n-  1\r\n", "seeds:\r\n-  0\r\n-  1\r\n-  2\r\n-  3\r\n"),
    "as many": ("seeds: [0, 1, 5, 3]\n", "seeds: [0, 1, 5, 3]\n"),
    "more": ("seeds: [0, 1, 2, 3, 4]\n", "seeds: [0, 1, 2, 3, 4]\n"),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), SEEDS.values(), ids=SEEDS)
def test_added_seeds_leave_other_bytes_unchanged(tmp_path, before, after):
    for text, expected in ((before + REST, after + REST), (REST + before, REST + after)):
        assert params_editor.extend_seeds(text, 4, tmp_path) == expected
        assert YAML(typ="safe").load(expected)["seeds"] == loader.parse(expected, tmp_path).seeds
    without_end = REST + before.rstrip()
    assert params_editor.extend_seeds(without_end, 4, tmp_path).rstrip() == (REST + after).rstrip()


REFUSED_SEEDS = {
    "an alias": (
        "seeds: &all [0, 1]\ntuning: {trials: 4}\n", "lr: {choice: *all}", "seeds is written in a way that .*: add 2, 3"
    ),
    "no seed above": ("seeds: [0, 4294967295]\n", "lr: 0.01", r"seeds\.2: "),
}  # fmt: skip


@pytest.mark.parametrize(("seeds", "value", "said"), REFUSED_SEEDS.values(), ids=REFUSED_SEEDS)
def test_seeds_that_cannot_be_added_are_refused(tmp_path, seeds, value, said):
    with pytest.raises(ConfigError, match=said):
        params_editor.extend_seeds(seeds + REST.replace("lr: 0.01", value), 4, tmp_path / "params.yaml")
