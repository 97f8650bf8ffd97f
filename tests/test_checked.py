"""What `optlab check` remembers, and what makes it look again."""

import re
import resource
import subprocess
import sys

import psutil
import pytest

from optlab.execution import checked
from optlab.system import memory, repository
from optlab.system.errors import ConfigError, LackError
from optlab.training import optimizers


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "of_mine.py").write_text("from torch.optim import SGD\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_found_again_without_torch(here, small_config):
    config = small_config()
    assert checked.known(config) is None
    found = checked.look(config)
    assert found.conditions.threads == 2 and found.conditions.cpu_capability != "unknown"
    program = (
        "import sys\nfrom optlab.config.parameters import Config\nfrom optlab.execution import checked\n"
        f"print(checked.known(Config.model_validate_json({config.model_dump_json(by_alias=True)!r})).model_dump_json())\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=here, capture_output=True, text=True)
    assert result.stdout.strip() == found.model_dump_json(), result.stderr


def test_what_it_depends_on_makes_it_look_again(here, small_config, monkeypatch):
    own = {"sgd": {"class": "of_mine.SGD", "lr": 0.01}}
    config = small_config(optimizers=own)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(here / "custom")])
        checked.look(config)
    assert checked.known(config)
    assert checked.known(small_config(optimizers=own, training={"epochs": 7})) is None
    with monkeypatch.context() as patch:
        patch.setenv("ATEN_CPU_CAPABILITY", "default")
        assert checked.known(config) is None
    with monkeypatch.context() as patch:
        patch.setattr(repository, "packages", lambda: ["torch-1.0.dist-info"])
        assert checked.known(config) is None
    with monkeypatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # only how long it takes
        assert checked.known(config)
    (here / "custom" / "of_mine.py").write_text("from torch.optim import Adam as SGD\n")
    assert checked.known(config) is None


def test_a_damaged_entry_is_looked_for_again(here, small_config):
    config = small_config()
    checked.look(config)
    for path in here.glob(".optlab/checked/*.json"):
        path.write_text("{")
    assert checked.known(config) is None
    assert checked.look(config) == checked.known(config)


def test_an_edit_of_one_optimizer_lets_the_others_be(here, small_config, monkeypatch):
    adam = {"class": "Adam", "lr": 0.001}
    checked.look(small_config(optimizers={"adam": adam, "sgd": {"class": "SGD", "lr": 0.01}}))
    looked = []
    monkeypatch.setattr(optimizers, "check", lambda config: looked.extend(config.optimizers) or [])
    checked.look(small_config(optimizers={"adam": adam, "sgd": {"class": "SGD", "lr": 0.02}}))
    assert looked == ["sgd"]


GREEDY = """
import torch

class Greedy(torch.optim.SGD):
    def step(self, closure=None):
        torch.ones({numbers}, dtype=torch.uint8)
        return super().step(closure)
"""


@pytest.fixture
def greedy(here, monkeypatch):
    """A function that writes an optimizer whose step takes so many bytes, and returns its entry."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(here / "custom")])

    def write(taken):
        name = f"greedy_{taken}"
        (here / "custom" / f"{name}.py").write_text(GREEDY.format(numbers=taken))
        return {"class": f"{name}.Greedy", "lr": 0.01}

    return write


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a step took")
def test_a_first_step_that_takes_most_of_the_memory_is_told_each_time(greedy, small_config, monkeypatch):
    monkeypatch.setattr(memory, "total", lambda: 2**27)
    monkeypatch.setattr(memory, "limit", lambda: None)  # this process is larger already
    config = small_config(optimizers={"sgd": {"class": "SGD", "lr": 0.01}, "mine": greedy(2**26 + 2**24)})
    (sentence,) = checked.look(config).warnings
    assert sentence.startswith("warning: optimizers.mine: its first step took 0.1 GiB of memory, more than half")
    assert checked.known(config).warnings == [sentence]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process can write to")
def test_a_step_that_wants_more_than_there_is_is_refused_in_one_line(greedy, small_config):
    limit = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        with pytest.raises(LackError) as refused:
            checked.look(small_config(optimizers={"mine": greedy(4 * (memory.total() + psutil.swap_memory().total))}))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limit)
    assert re.fullmatch(
        r"params.yaml: optimizers.mine: greedy_\d+.Greedy wants more memory than the [\d.]+ GiB that there are "
        r"\([\d.]+ GiB at once\)", str(refused.value)
    )  # fmt: skip


def test_what_cannot_be_used_is_not_remembered(here, small_config):
    config = small_config(optimizers={"adam": {"class": "Adam", "betas": [2.0, 0.9]}})
    with pytest.raises(ConfigError, match="betas"):
        checked.look(config)
    assert checked.known(config) is None and not list(here.glob(".optlab/checked/*"))


def test_old_entries_go(here, small_config, monkeypatch):
    monkeypatch.setattr(checked, "_KEPT", 2)
    for epochs in (1, 2, 3):
        checked.look(small_config(training={"epochs": epochs}))
    assert len(list(here.glob(".optlab/checked/*.json"))) == 2
    assert checked.known(small_config(training={"epochs": 3}))
