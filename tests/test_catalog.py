"""Each ready entry trains, for real; `optlab add` puts it into a params.yaml."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import torch
from projects import PARAMS
from ruamel.yaml import YAML

from optlab import cli
from optlab.config import catalog, loader
from optlab.data import cifar10
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import NAME_PATTERN
from optlab.system.errors import ConfigError
from optlab.training import loop, models, optimizer_factory

TOP = Path(__file__).resolve().parents[1]
BY_NAME = {each.name: each for each in catalog.load().entries}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("known", catalog.load().entries, ids=BY_NAME)
def test_catalog_entry_trains(small_config, sample, known):
    """Seven steps: every weight moves, and no loss is lost."""
    if importlib.util.find_spec(known.package) is None:
        pytest.skip(f"{known.package} is not installed: pip install -e '.[zoo]'")
    config = small_config(
        optimizers={known.name: known.values},
        data={"train_size": 40, "validation_size": 10},
        training={"batch_size": 6},
    )
    splits = cifar10.load(sample, config.data, 0)
    outcome = loop.train(config, known.name, 0, splits, torch.device("cpu"))
    assert outcome.status == "completed" and len(outcome.step_losses[0]) == 7
    for before, after in zip(models.build("zilliax", 0).parameters(), outcome.model.parameters(), strict=True):
        assert not torch.equal(before, after)


def test_catalog_names_are_valid_and_unique():
    assert len(BY_NAME) == len(catalog.load().entries)
    assert all(re.fullmatch(NAME_PATTERN, name) for name in BY_NAME)


def test_catalog_contains_all_dense_torch_classes():
    found = {each.values["class"] for each in catalog.load().entries if each.package == "torch"}
    assert found == set(optimizer_factory.get_torch_classes()) - {"SparseAdam"}


def test_catalog_package_pins_are_consistent():
    extra = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]["zoo"]
    pins = {f"{name}=={version}" for name, version in catalog.load().packages.items()}
    assert pins == set(extra) and pins <= set((TOP / "constraints.txt").read_text().split())
    assert {each.package for each in catalog.load().entries} == {"torch", *catalog.load().packages}


def test_catalog_range_surrounds_entry_learning_rate():
    assert BY_NAME["adam"].lr_range_text == "0.0001 to 0.1"
    assert BY_NAME["lookahead"].lr_range_text == "0.0001 to 0.1"  # its base's
    assert BY_NAME["prodigy"].lr_range_text == ""


@pytest.mark.parametrize("known", catalog.load().entries, ids=BY_NAME)
def test_catalog_entry_with_range_is_valid(known):
    found = OptimizerSpec.model_validate(YAML(typ="safe", pure=True).load(known.text_with_range))
    plain = OptimizerSpec.model_validate(known.values)
    assert found.replace_ranges({}) == plain
    (key,) = found.ranges or ("",)
    assert (key in ("lr", "base.lr")) == bool(known.lr_range_text)
    if key:
        rate = (plain.base if "." in key else plain).hyperparameters["lr"]
        assert (found.ranges[key].low, found.ranges[key].high) == (pytest.approx(rate / 10), pytest.approx(rate * 100))


def test_catalog_table_names_missing_packages(monkeypatch):
    assert len(catalog.format_table().splitlines()) == 1 + len(catalog.load().entries)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "schedulefree" else True)
    assert catalog.format_table().splitlines()[-1] == "schedulefree is not installed: pip install 'schedulefree==1.4.1'"
    with pytest.raises(ConfigError, match=r"^schedule_free_sgd: its package is not installed: pip install 'sched.+1'"):
        catalog.find_entry("schedule_free_sgd")


def test_unknown_catalog_name_suggests_nearest():
    with pytest.raises(
        ConfigError, match=r"^no entry is known as 'lyon': did you mean lion\?: `optlab add` lists them$"
    ):
        catalog.find_entry("lyon")


def test_add_command_lists_or_inserts_entries(tmp_path, monkeypatch, capsys):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    cli.add(None, searched=False)
    assert capsys.readouterr().out.splitlines()[0].split() == ["name", "class", "search", "lr", "from", "source"]
    cli.add("lion", searched=False)
    added = "  lion: {class: pytorch_optimizer.Lion, lr: 0.0001}  # Chen et al. 2023, arXiv:2302.06675; search lr from "
    assert added + "1e-05 to 0.01\n" in (tmp_path / "params.yaml").read_text()
    assert capsys.readouterr().out.startswith("params.yaml: added lion: {class: pytorch_optimizer.Lion, lr: 0.0001}")
    cli.add("lookahead", searched=True)
    ranged = "lookahead: {class: pytorch_optimizer.Lookahead, base: {class: Adam, lr: {log: [0.0001, 0.1]}, default: "
    assert ranged + "{lr: 0.001}}}  # Zhang et al. 2019, arXiv:1907.08610\n" in (tmp_path / "params.yaml").read_text()
    cli.new("quick_step")
    assert (tmp_path / "custom" / "quick_step.py").exists() and (tmp_path / "tests" / "test_quick_step.py").exists()
    assert list(loader.load(tmp_path / "params.yaml").optimizers) == ["sgd", "adam", "lion", "lookahead", "quick_step"]
