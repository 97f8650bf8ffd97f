"""Each ready entry trains, for real; `optlab add` puts it into a params.yaml."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import torch
from projects import PARAMS
from ruamel.yaml import YAML

from optlab.cli import comparing
from optlab.config import reading, zoo
from optlab.config.entries import OptimizerSpec
from optlab.config.parameters import NAME_PATTERN
from optlab.data import dataset
from optlab.system.errors import ConfigError
from optlab.training import classes, loop, models

TOP = Path(__file__).resolve().parents[1]
BY_NAME = {each.name: each for each in zoo.KNOWN}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("known", zoo.KNOWN, ids=BY_NAME)
def test_each_trains(small_config, sample, known):
    """Seven steps: every weight moves, and no loss is lost."""
    if importlib.util.find_spec(known.package) is None:
        pytest.skip(f"{known.package} is not installed: pip install -e '.[zoo]'")
    config = small_config(
        optimizers={known.name: known.values},
        data={"train_size": 100, "validation_size": 20},
        training={"batch_size": 16},
    )
    splits = dataset.load(sample, config.data, 0)
    outcome = loop.train(config, known.name, 0, splits, torch.device("cpu"))
    assert outcome.status == "completed" and len(outcome.step_losses[0]) == 7
    for before, after in zip(models.build("zilliax", 0).parameters(), outcome.model.parameters(), strict=True):
        assert not torch.equal(before, after)


def test_names_are_names_and_each_is_there_once():
    assert len(BY_NAME) == len(zoo.KNOWN)
    assert all(re.fullmatch(NAME_PATTERN, name) for name in BY_NAME)


def test_every_dense_class_of_torch_is_there():
    found = {each.values["class"] for each in zoo.KNOWN if each.package == "torch"}
    assert found == set(classes.torch_classes()) - {"SparseAdam"}


def test_the_packages_are_pinned_alike_everywhere():
    extra = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]["zoo"]
    pins = {f"{name}=={version}" for name, version in zoo.PACKAGES.items()}
    assert pins == set(extra) and pins <= set((TOP / "constraints.txt").read_text().split())
    assert {each.package for each in zoo.KNOWN} == {"torch", *zoo.PACKAGES}


def test_the_range_is_about_the_entry_s_own_rate():
    assert BY_NAME["adam"].search == "0.0001 to 0.1"
    assert BY_NAME["lookahead"].search == "0.0001 to 0.1"  # its base's
    assert BY_NAME["prodigy"].search == ""


@pytest.mark.parametrize("known", zoo.KNOWN, ids=BY_NAME)
def test_each_can_be_had_with_its_range(known):
    found = OptimizerSpec.model_validate(YAML(typ="safe", pure=True).load(known.searched))
    plain = OptimizerSpec.model_validate(known.values)
    assert found.settled({}) == plain
    (key,) = found.ranges or ("",)
    assert (key in ("lr", "base.lr")) == bool(known.search)
    if key:
        rate = (plain.base if "." in key else plain).hyperparameters["lr"]
        assert (found.ranges[key].low, found.ranges[key].high) == (pytest.approx(rate / 10), pytest.approx(rate * 100))


def test_the_list_says_what_is_not_installed(monkeypatch):
    assert len(zoo.table().splitlines()) == 1 + len(zoo.KNOWN)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "schedulefree" else True)
    assert zoo.table().splitlines()[-1] == "schedulefree is not installed: pip install 'schedulefree==1.4.1'"
    with pytest.raises(ConfigError, match=r"^schedule_free_sgd: its package is not installed: pip install 'sched.+1'"):
        zoo.find("schedule_free_sgd")


def test_an_unknown_name_is_one_line_with_the_nearest_one():
    with pytest.raises(
        ConfigError, match=r"^no entry is known as 'lyon': did you mean lion\?: `optlab add` lists them$"
    ):
        zoo.find("lyon")


def test_the_command_lists_them_or_adds_one(tmp_path, monkeypatch, capsys):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    comparing.add(None, searched=False)
    assert capsys.readouterr().out.splitlines()[0].split() == ["name", "class", "search", "lr", "from", "source"]
    comparing.add("lion", searched=False)
    added = "  lion: {class: pytorch_optimizer.Lion, lr: 0.0001}  # Chen et al. 2023, arXiv:2302.06675; search lr from "
    assert added + "1e-05 to 0.01\n" in (tmp_path / "params.yaml").read_text()
    assert capsys.readouterr().out.startswith("params.yaml: added lion: {class: pytorch_optimizer.Lion, lr: 0.0001}")
    comparing.add("lookahead", searched=True)
    ranged = "lookahead: {class: pytorch_optimizer.Lookahead, base: {class: Adam, lr: {log: [0.0001, 0.1]}, default: "
    assert ranged + "{lr: 0.001}}}  # Zhang et al. 2019, arXiv:1907.08610\n" in (tmp_path / "params.yaml").read_text()
    comparing.new("quick_step")
    assert (tmp_path / "custom" / "quick_step.py").exists() and (tmp_path / "tests" / "test_quick_step.py").exists()
    assert list(reading.load(tmp_path / "params.yaml").optimizers) == ["sgd", "adam", "lion", "lookahead", "quick_step"]
