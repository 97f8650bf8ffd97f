"""Each ready entry trains, for real; `optlab add` puts it into a params.yaml."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import ready_entries
import torch
from projects import PARAMS
from ruamel.yaml import YAML

from optlab import cli
from optlab.config import catalog, loader
from optlab.data import cifar10
from optlab.orchestration import versus_pipeline
from optlab.preflight import model_check
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import NAME_PATTERN
from optlab.system.errors import ConfigError
from optlab.training import loop, models, optimizer_factory, optimizers
from optlab.training.optimizer_factory import TrainingContext

TOP = Path(__file__).resolve().parents[1]
STUDY = TOP / "studies" / "optimizers" / "params.yaml"
BY_NAME = ready_entries.fill_in()
OUTPUT_WEIGHTS = {"zilliax": "8.weight", "conv6": "22.weight", "fast": "25.weight", "resnet18": "fc.weight"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("known", BY_NAME.values(), ids=BY_NAME)
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


@pytest.mark.parametrize("model", models.MODELS)
@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_muon_has_all_hidden_weights_and_adamw_the_rest(small_config, model, name):
    """Convolutions and hidden matrices by Muon; the output layer, biases and normalisations by AdamW."""
    pytest.importorskip("pytorch_optimizer")
    config = small_config(model=model, optimizers={name: ready_entries.fill_in(model)[name].values})
    network = models.build(model, 0)
    driver = optimizers.build(name, config.get_optimizer(name), TrainingContext.from_config(config, network))
    names = {value: key for key, value in network.named_parameters() if value.requires_grad}
    found = {True: set(), False: set()}
    for group in driver.optimizers[0].param_groups:
        found[group["use_muon"]] |= {names[value] for value in group["params"]}
        assert group["lr"] == (0.02 if group["use_muon"] else 0.001)
    hidden = {key for value, key in names.items() if value.ndim >= 2 and key != OUTPUT_WEIGHTS[model]}
    assert found == {True: hidden, False: set(names.values()) - hidden}
    assert len(driver.optimizers) == 1 and len(hidden) == {"zilliax": 4, "conv6": 6, "fast": 6, "resnet18": 20}[model]


def test_muon_entry_is_that_of_the_study():
    study = loader.load(STUDY).optimizers["muon"]
    found = OptimizerSpec.model_validate(YAML(typ="safe", pure=True).load(BY_NAME["muon"].text_with_range))
    assert (found.class_, found.ranges, found.default) == (study.class_, study.ranges, study.default)
    assert found.hyperparameters == study.hyperparameters


def test_entry_names_the_output_weight_of_the_study_or_model(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    _, values = versus_pipeline.find_entry("normuon", tmp_path / "params.yaml", "conv6")
    assert values["groups"][0] == {"match": "22.weight", "use_muon": False}
    with pytest.raises(ConfigError, match=r"^model torch\.nn\.Identity has no weight with two or more dimensions"):
        model_check.find_output_weight("torch.nn.Identity")


def test_output_weight_is_found_without_torch_in_this_process(tmp_path):
    """`optlab versus` sets the variables that torch reads as it is imported only afterwards."""
    (tmp_path / "params.yaml").write_text(PARAMS)
    program = (
        "import sys\nfrom pathlib import Path\nfrom optlab.orchestration import versus_pipeline\n"
        "_, values = versus_pipeline.find_entry('normuon', Path('params.yaml'), 'zilliax')\n"
        "assert values['groups'][0]['match'] == '8.weight' and 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_catalog_range_surrounds_entry_learning_rate():
    assert BY_NAME["adam"].lr_range_text == "0.0001 to 0.1"
    assert BY_NAME["lookahead"].lr_range_text == "0.0001 to 0.1"  # its base's
    assert BY_NAME["prodigy"].lr_range_text == ""


@pytest.mark.parametrize("known", BY_NAME.values(), ids=BY_NAME)
def test_catalog_entry_with_range_is_valid(known):
    found = OptimizerSpec.model_validate(YAML(typ="safe", pure=True).load(known.text_with_range))
    plain = OptimizerSpec.model_validate(known.values)
    assert found.replace_ranges({}) == plain
    assert any(key in ("lr", "base.lr") for key in found.ranges) == bool(known.lr_range_text)
    for key, range_ in found.ranges.items():
        assert key.rpartition(".")[2] in ("lr", "adamw_lr")
        rate = found.get_default(key)
        assert (range_.low, range_.high) == (pytest.approx(rate / 10), pytest.approx(rate * 100))


def test_catalog_table_names_missing_packages(monkeypatch):
    assert len(catalog.format_table().splitlines()) == 1 + len(catalog.load().entries)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "schedulefree" else True)
    assert catalog.format_table().splitlines()[-1] == "schedulefree is not installed: pip install 'schedulefree==1.4.1'"
    with pytest.raises(ConfigError, match=r"^schedule_free_sgd: its package is not installed: pip install 'sched.+1'"):
        catalog.find_entry("schedule_free_sgd")


def test_unknown_catalog_name_suggests_nearest():
    with pytest.raises(
        ConfigError, match=r"^no entry is known as 'lyon' \(`optlab add` lists all\): did you mean lion\?$"
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
    cli.add("muon", searched=True)
    text = (tmp_path / "params.yaml").read_text()
    assert "adamw_lr: {log: [0.0001, 0.1]}, groups: [{match: 8.weight, use_muon: false}, {ndim: 1, use_muon: f" in text
    assert "default: {lr: 0.02, adamw_lr: 0.001}}  # Jordan et al. 2024; " in text
    cli.new("quick_step")
    assert (tmp_path / "custom" / "quick_step.py").exists() and (tmp_path / "tests" / "test_quick_step.py").exists()
    assert list(loader.load(tmp_path / "params.yaml").optimizers) == [
        "sgd",
        "adam",
        "lion",
        "lookahead",
        "muon",
        "quick_step",
    ]
