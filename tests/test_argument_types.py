"""Values of another type than a class's signature has are refused; each in its own words."""

from pathlib import Path
from typing import Literal

import bad_input
import bad_signatures
import pytest
import pytorch_optimizer
import ready_entries
import schedulefree
import torch
from ruamel.yaml import YAML

from optlab.config import loader
from optlab.orchestration import preflight_cache
from optlab.preflight import argument_types, checks
from optlab.schema import parameters
from optlab.system.errors import ConfigError
from optlab.training import optimizer_factory

TOP = Path(__file__).resolve().parents[1]
MUON = "class: pytorch_optimizer.Muon, lr: 0.02"
SAM = "class: pytorch_optimizer.SAM"

REFUSED = {
    "off": ("class: Adam, amsgrad: off", "amsgrad: Adam takes true or false, not 'off': write false, for YAML 1.2"),
    "yes": ("class: SGD, maximize: yes", "maximize: SGD takes true or false, not 'yes': write true, for YAML 1.2"),
    "quoted true": ("class: Adam, amsgrad: 'true'", "amsgrad: Adam takes true or false, not 'true': write true, with"),
    "one for true": ("class: Adam, amsgrad: 1", "amsgrad: Adam takes true or false, not 1: write true"),
    "null for false": ("class: Adam, amsgrad: null", "amsgrad: Adam takes true or false, not None: remove it"),
    "quoted number": ("class: SGD, dampening: '0.5'", "dampening: SGD takes a number, not '0.5': write 0.5, without"),
    "true for a number": ("class: SGD, momentum: true", "momentum: SGD takes a number, not True"),
    "no learning rate": ("class: SGD, lr: null", "lr: SGD takes a number, not None: remove it for the class's default"),
    "a fraction": ("class: LBFGS, max_iter: 4.5", "max_iter: LBFGS takes a whole number, not 4.5: a range of whole"),
    "a decimal": ("class: LBFGS, max_iter: 4.0", "max_iter: LBFGS takes a whole number, not 4.0: write 4; a range"),
    "a number for text": ("class: LBFGS, line_search_fn: 3", "line_search_fn: LBFGS takes text or null, not 3"),
    "one of a pair": ("class: Adam, betas: [0.9]", "betas: Adam takes a list of 2 numbers, not [0.9]"),
    "three for a pair": ("class: Adam, betas: [0.9, 0.9, 0.9]", "betas: Adam takes a list of 2 numbers, not [0.9, 0."),
    "a word of few": ("class: pytorch_optimizer.MARS, mars_type: adamv", "mars_type: MARS takes adamw or lion or "
                      "shampoo, not 'adamv': did you mean adamw?"),
    "an object": ("class: pytorch_optimizer.Kron, precondition_dtype: float32",
                  "precondition_dtype: Kron takes an object that no params.yaml can hold, not 'float32': remove it"),
    "handed on": (f"{SAM}, momentum: '0.9', base: {{class: SGD, lr: 0.1}}",
                  "momentum: SAM takes no such text, not '0.9': write 0.9, without quotes"),
    "of a base": (f"{SAM}, base: {{class: SGD, lr: 0.1, nesterov: on}}", "base.nesterov: SGD takes true or false"),
    "of a fallback": ("class: Muon, fallback: {class: AdamW, amsgrad: no}", "fallback.amsgrad: AdamW takes true or f"),
    "of a group": ("class: SGD, groups: [{ndim: 1, nesterov: off}]", "groups.0.nesterov: SGD takes true or false"),
    "a group's flag": (f'{MUON}, groups: [{{ndim: 2, use_muon: true}}, {{match: "*", use_muon: off}}]',
                       "groups.1.use_muon: Muon takes no such text, not 'off': write false, for YAML 1.2 reads off"),
    "among choices": ("class: SGD, lr: 0.1, momentum: 0.9, nesterov: {choice: [true, off]}", "nesterov: SGD takes"),
    "in a choice's mapping": ("class: SGD, a: {choice: [{momentum: 0.9}, {nesterov: off}]}", "nesterov: SGD takes"),
    "the end of a range": ("class: LBFGS, max_iter: {log: [1, 8]}", "max_iter: LBFGS takes a whole number, not 1.0"),
    "a default": ("class: SGD, momentum: {linear: [0.1, 0.9]}, default: {momentum: '0.9'}", "momentum: SGD takes"),
}  # fmt: skip


def parse_entry(text):
    return YAML(typ="safe", pure=True).load(f"{{{text}}}")


def check_argument_types(config):
    """Every entry's classes, at all ends of its ranges; nothing is built."""
    for each in preflight_cache.split_config(config):
        for name, spec in each.optimizers.items():
            for place, part in ((name, spec), (f"{name}.fallback", spec.fallback)):
                if part:
                    entry = optimizer_factory.resolve_optimizer(f"optimizers.{place}", part)
                    checks.check_hyperparameters(entry)
                    checks.check_groups(entry)


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_wrong_argument_type_error_names_remedy(small_config, text, said):
    with pytest.raises(ConfigError) as refused:
        check_argument_types(small_config(optimizers={"mine": parse_entry(text)}))
    assert str(refused.value).startswith(f"params.yaml: optimizers.mine.{said}")


ACCEPTED = (
    "class: SGD, weight_decay: 1, momentum: 0, dampening: 0, foreach: null, fused: true",
    "class: Adam, lr: 1, betas: [0, 0.9], amsgrad: true",
    "class: LBFGS, max_iter: {linear: [1, 3]}, line_search_fn: strong_wolfe, max_eval: null",
    "class: pytorch_optimizer.AggMo, betas: [0, 0.9, 0.99, 0.999]",  # its annotation says two or three
    "class: pytorch_optimizer.Adan, betas: [0.98, 0.92, 0.99]",
    "class: pytorch_optimizer.AdaFactor, lr: null, relative_step: true",
    "class: pytorch_optimizer.Lookahead, pullback_momentum: none, base: {class: SGD}",
    "class: pytorch_optimizer.Muon, ns_coeffs: [3.4, -4.7, 2.0], groups: [{match: '*', use_muon: true}]",
)


@pytest.mark.parametrize("text", ACCEPTED)
def test_correct_argument_types_are_accepted(small_config, text):
    check_argument_types(small_config(optimizers={"mine": parse_entry(text)}))


@pytest.mark.parametrize("path", sorted(TOP.glob("**/params.yaml")), ids=lambda path: path.parent.name)
def test_committed_params_files_have_correct_types(path, monkeypatch):
    monkeypatch.chdir(TOP)
    check_argument_types(loader.load(path))


def test_catalog_entries_and_defaults_have_correct_types(small_config):
    check_argument_types(small_config(optimizers={name: each.values for name, each in ready_entries.fill_in().items()}))
    for cls in bad_signatures.classes(torch.optim, pytorch_optimizer, schedulefree):
        argument_types.check("", cls, bad_signatures.defaults(cls))


class Untyped(torch.optim.SGD):
    def __init__(
        self, params, lr=1, rate=0, flag=False, pair=(0.9, 0.99), word="a", unset=None, few: Literal["a", None] = "a"
    ):
        super().__init__(params, lr=lr)


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    (
        ("rate", (0.5, 1, None), ("much", "off", True, [1])),
        ("flag", (True, False), ("off", 0.5, [True])),
        ("pair", ([0.9], [0.9, 0.99, 0.999]), (0.9, "0.9", True)),
        ("word", ("off", "b"), (1, True)),
        ("unset", (1, 0.5, True, "text", [1]), ("off", "0.5")),
        ("few", ("a", None), ("b", 1)),
        ("not_there", (1, "text"), ("no", "1e-3")),
    ),
)
def test_unannotated_argument_type_follows_default(key, right, wrong):
    for value in right:
        argument_types.check("", Untyped, {key: value})
    for value in wrong:
        with pytest.raises(ConfigError, match=f"{key}: Untyped takes"):
            argument_types.check("", Untyped, {key: value})


BASE = """
model: zilliax
seeds: [0]
data: {dataset: cifar10_sample, train_size: 400, validation_size: 100}
training: {epochs: 1, batch_size: 64, threads: 2}
optimizers: {sgd: {class: SGD}}
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    (
        (
            "train_size",
            "shuffle: off, train_size",
            "data.shuffle: input should be a valid boolean, not 'off': write false",
        ),
        ("size: 400", "size: '400'", "data.train_size: input should be a valid integer, not '400': write 400, without"),
        ("epochs: 1", "epochs: 1.0", "training.epochs: input should be a valid integer, not 1.0: write 1"),
        ("{class: SGD}", "{class: SGD, lr: '0.1'}", "lr must be a number, not '0.1': write 0.1, without quotes"),
        (
            "{class: SGD}",
            "{class: SGD, create_graph: no}",
            "create_graph: input should be a valid boolean, not 'no': wr",
        ),
    ),
)
def test_params_type_error_shows_correct_value(before, after, said):
    with pytest.raises(ConfigError) as refused:
        loader.parse(BASE.replace(before, after), parameters.PARAMS_FILE)
    assert said in str(refused.value)


def test_full_width_digit_error_has_no_quotes_hint():
    """YAML reads it as text, with and without."""
    with pytest.raises(ConfigError, match=r"lr must be a number, not '\uff11'$"):
        loader.parse(BASE.replace("{class: SGD}", "{class: SGD, lr: \uff11}"), parameters.PARAMS_FILE)


def test_signature_benchmark_subset_passes():
    found = list(bad_input.signatures([torch.optim.Adam, torch.optim.LBFGS, pytorch_optimizer.Ranger21]))
    assert len(found) > 200
    assert not bad_input.wrong(found)
