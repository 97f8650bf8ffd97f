"""params.yaml is checked whole and by name: every bad input is one line with its place and the remedy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from optlab.config import loader
from optlab.preflight import checks
from optlab.schema import parameters
from optlab.system.errors import ConfigError

ROOT = Path(__file__).parents[1]

GOOD = """\
model: zilliax
seeds: [0, 1]
data:
  dataset: cifar10_sample
  train_size: 400
  validation_size: 100
training:
  epochs: 2
  batch_size: 64
  threads: 2
  schedule: {name: constant}
optimizers:
  sgd: {class: SGD, lr: 0.01}
  adam:
    class: Adam
    lr: 0.001
"""
BEFORE_OPTIMIZERS = GOOD[: GOOD.index("optimizers:")]
RENAME = "rename it"


# Ten lists of ten, each entry an alias of the list inside it: short in the file, endless when it is written out.
ENDLESS = "1"
for level in range(10):
    ENDLESS = f"[&l{level} {ENDLESS}{f', *l{level}' * 9}]"
HEXADECIMAL = "0x" + "f" * 5000  # Python reads it, and refuses to write it


def load_params(folder, text):
    path = folder / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return loader.load(path)


def load_error_message(folder, text):
    """The message, with the file's folder taken off its front."""
    with pytest.raises(ConfigError) as caught:
        load_params(folder, text)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(str(folder))
    return message.removeprefix(f"{folder}/")


def edit_params(old, new):
    assert GOOD.count(old) == 1, f"{old!r} must name one place of the good file"
    return GOOD.replace(old, new)


def params_on_test_split(train_size, validation_size):
    return (
        GOOD.replace("  train_size: 400", f"  train_split: test\n  train_size: {train_size}")
        .replace("validation_size: 100", f"validation_size: {validation_size}")
        .replace("batch_size: 64", "batch_size: 10")
    )


def test_valid_params_load(tmp_path):
    loaded = load_params(tmp_path, GOOD)
    assert loaded.list_runs() == [("sgd", 0), ("sgd", 1), ("adam", 0), ("adam", 1)]
    assert loaded.get_optimizer("adam").class_ == "Adam"
    assert loaded.get_optimizer("adam").hyperparameters == {"lr": 0.001}
    assert loaded.training.precision == "fp32"
    assert loaded.data.train_split == "train" and loaded.data.shuffle


def test_missing_params_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file here: run from the folder that holds it$"):
        loader.load(tmp_path / "nowhere.yaml")


def test_folder_in_place_of_params_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        loader.load(tmp_path)


FILES = {
    "empty": ("", "params.yaml: ", "the file is empty"),
    "comments only": ("# nothing\n", "params.yaml: ", "git checkout"),
    "a list": ("- a\n", "params.yaml: ", "expected `key: value` lines, found a list"),
    "a word": ("hello\n", "params.yaml: ", "expected `key: value` lines, found a str"),
    "not UTF-8": (GOOD.encode() + b"# \xe9\n", "params.yaml: ", "cannot be read as UTF-8 text"),
    "control character": (GOOD + "# \x01\n", "params.yaml: ", "not valid YAML"),
    "open bracket": (edit_params("[0, 1]", "[0, 1"), "params.yaml:3: ", "not valid YAML"),
    "tab": (edit_params("  epochs", "\tepochs"), "params.yaml:8: ", "indent with spaces, not with a tab"),
    "a wrong value that is merged in": (
        GOOD + "  more: {<<: {class: SGD, lr: x}}\n",
        "params.yaml:17: ",
        "optimizers.more: lr must be a number, not 'x'",
    ),
    "two documents": (GOOD + "---\na: 1\n", "params.yaml:17: ", "not valid YAML"),
    "unknown alias": (edit_params("model: zilliax", "model: *x"), "params.yaml:1: ", "undefined alias"),
    "code as a tag": (edit_params("zilliax", "!!python/name:os.abort"), "params.yaml:1: ", "not valid YAML"),
    "nothing as a whole number": (edit_params("[0, 1]", '[!!int ""]'), "params.yaml: ", "not valid YAML"),
    "word as true or false": (edit_params("[0, 1]", "[!!bool x]"), "params.yaml: ", "not valid YAML"),
    "lists as a key": (edit_params("model:", "[[1]]:"), "params.yaml: ", "not valid YAML"),
    "duplicate key": (
        edit_params("seeds: [0, 1]", "seeds: [0]\nseeds: [1]"),
        "params.yaml:3: ",
        'duplicate key "seeds"',
    ),
    "duplicate optimizer": (edit_params("  adam:", "  sgd:"), "params.yaml:14: ", 'duplicate key "sgd"'),
    "duplicate hyperparameter": (
        edit_params("lr: 0.01}", "lr: 0.01, lr: 1}"),
        "params.yaml:13: ",
        'duplicate key "lr"',
    ),
}


@pytest.mark.parametrize(("text", "place", "phrase"), FILES.values(), ids=FILES)
def test_malformed_params_file_error_names_line(tmp_path, text, place, phrase):
    message = load_error_message(tmp_path, text)
    assert message.startswith(place)
    assert phrase in message


EDITS = {
    "unknown key": ("model:", "modle:", "1: modle", "did you mean model?"),
    "unknown key of data": ("  train_size:", "  trian_size:", "5: data.trian_size", "did you mean train_size?"),
    "unknown key of training": ("  epochs:", "  epoch:", "8: training.epoch", "did you mean epochs?"),
    "unknown key of schedule": (
        "{name: constant}", "{name: step, step_epochs: 1, gama: 0.5}",
        "11: training.schedule.gama", "did you mean gamma?"),
    "unknown key far from any": ("model:", "qqqq: 1\nmodel:", "1: qqqq", "unknown key"),
    "misspelt class": ("{class: SGD", "{clas: SGD", "13: optimizers.sgd", "class"),
    "missing section": ("training:", "training_:", "7: training_", "did you mean training?"),
    "missing key": ("  epochs: 2\n", "", "7: training.epochs", "add this key"),
    "text for a whole number": ("epochs: 2", "epochs: two", "8: training.epochs", "valid integer, not 'two'"),
    "fraction for a whole number": ("epochs: 2", "epochs: 2.0", "8: training.epochs", "valid integer, not 2.0"),
    "true for a whole number": ("epochs: 2", "epochs: true", "8: training.epochs", "valid integer, not True"),
    "nothing for a whole number": ("epochs: 2", "epochs:", "8: training.epochs", "valid integer, not None"),
    "no epochs": ("epochs: 2", "epochs: 0", "8: training.epochs", "greater than or equal to 1, not 0"),
    "no threads": ("threads: 2", "threads: 0", "10: training.threads", "greater than or equal to 1, not 0"),
    "too many threads": ("threads: 2", "threads: 5000", "10: training.threads", "equal to 1024, not 5000"),
    "unknown precision": (
        "threads: 2", "threads: 2\n  precision: fp16", "11: training.precision", "'fp32' or 'bf16', not 'fp16'"),
    "text for true or false": (
        "  train_size", "  shuffle: 'no'\n  train_size", "5: data.shuffle", "valid boolean, not 'no'"),
    "unknown data set": ("cifar10_sample", "cifar100", "4: data.dataset", "'cifar10_sample', not 'cifar100'"),
    "unknown split": (
        "  train_size", "  train_split: val\n  train_size", "5: data.train_split", "'train' or 'test', not 'val'"),
    "number for a model": ("zilliax", "3", "1: model", "valid string, not 3"),
    "no model": ("zilliax", "''", "1: model", "at least 1 character"),
    # seeds
    "one bare seed": ("[0, 1]", "5", "2: seeds", "valid list, not 5"),
    "no seeds": ("[0, 1]", "[]", "2: seeds", "at least one entry"),
    "null seeds": ("[0, 1]", "", "2: seeds", "valid list, not None"),
    "range of seeds": ("[0, 1]", "0..4", "2: seeds", "valid list, not '0..4'"),
    "duplicate seed": ("[0, 1]", "[0, 3, 3]", "2: seeds", "seed 3 is listed twice"),
    "negative seed": ("[0, 1]", "[0, -1]", "2: seeds.1", "greater than or equal to 0, not -1"),
    "seed of 33 bits": ("[0, 1]", "[4294967296]", "2: seeds.0", "less than 4294967296"),
    "text as a seed": ("[0, 1]", "[a]", "2: seeds.0", "valid integer, not 'a'"),
    # learning rates
    "negative lr": ("lr: 0.01}", "lr: -0.1}", "13: optimizers.sgd", "from 0 up, and finite, not -0.1"),
    "negative lr on a line of its own": ("lr: 0.001", "lr: -1", "16: optimizers.adam", "lr must be a number"),
    "lr of NaN": ("lr: 0.01}", "lr: .nan}", "13: optimizers.sgd.lr", "not nan"),
    "infinite lr": ("lr: 0.01}", "lr: .inf}", "13: optimizers.sgd.lr", "not inf"),
    "overflowing lr": ("lr: 0.01}", "lr: 1e400}", "13: optimizers.sgd.lr", "not inf"),
    "text as lr": ("lr: 0.01}", "lr: fast}", "13: optimizers.sgd", "lr must be a number, not 'fast'"),
    "quoted lr": ("lr: 0.01}", "lr: '0.01'}", "13: optimizers.sgd", "lr must be a number, not '0.01'"),
    "true as lr": ("lr: 0.01}", "lr: true}", "13: optimizers.sgd", "lr must be a number, not True"),
    # sizes
    "batch above the data": ("batch_size: 64", "batch_size: 401", "9: training.batch_size", "make it smaller"),
    "empty batch": ("batch_size: 64", "batch_size: 0", "9: training.batch_size", "greater than or equal to 1"),
    "uneven train_size": ("400", "405", "5: data.train_size", "multiple of 10, the number of classes, not 405"),
    "uneven validation_size": ("100", "95", "6: data.validation_size", "multiple of 10"),
    "no training images": ("400", "0", "5: data.train_size", "greater than or equal to 10"),
    "negative validation_size": ("100", "-10", "6: data.validation_size", "greater than or equal to 0"),
    "more than the data set": ("400", "410", "5: data", "is 510, but the train split of cifar10_sample has 500"),
    "no validation split": ("100", "0", "6: data", "validation_size must be at least 10"),
    # validation and verdict
    "validation never": (
        "threads: 2", "threads: 2\n  validations_per_epoch: 0",
        "11: training.validations_per_epoch", "or equal to 1, not 0"),
    "half a validation": (
        "threads: 2", "threads: 2\n  validations_per_epoch: 0.5",
        "11: training.validations_per_epoch", "valid integer, not 0.5"),
    "target in percent": ("model:", "verdict: {target: 60}\nmodel:", "1: verdict.target", "or equal to 1, not 60"),
    "margin of nothing": ("model:", "verdict: {margin: 0}\nmodel:", "1: verdict.margin", "greater than 0, not 0"),
    "warm-up of all steps": (
        "schedule: {name: constant}", "schedule: {name: cosine, warmup_epochs: 1.95}",
        "11: training.schedule.warmup_epochs is 1.95", "takes all 14 steps of the training, and the schedule cosine",
    ),
    "misspelt margin": ("model:", "verdict: {margn: 0.1}\nmodel:", "1: verdict.margn", "did you mean margin?"),
    # groups and an entry's own schedule
    "group of nothing": ("lr: 0.01}", "lr: 0.01, groups: [{lr: 1}]}", "13: optimizers.sgd.groups.0", "either `match`"),
    "group by both": (
        "lr: 0.01}", "lr: 0.01, groups: [{match: a, ndim: 1}]}", "13: optimizers.sgd.groups.0", "either `match`"),
    "no list of groups": ("lr: 0.01}", "lr: 0.01, groups: {ndim: 1}}", "13: optimizers.sgd.groups", "valid list"),
    "rate of a group": (
        "lr: 0.01}", "lr: 0.01, groups: [{ndim: 1, lr: -1}]}", "13: optimizers.sgd.groups.0", "lr must be a number"),
    "misspelt key of an entry's schedule": (
        "lr: 0.01}", "lr: 0.01, schedule: {name: cosine, warmup: 1}}",
        "13: optimizers.sgd.schedule.warmup", "did you mean warmup_epochs?"),
    "an entry's unknown schedule": (
        "lr: 0.01}", "lr: 0.01, schedule: {name: linear}}", "13: optimizers.sgd.schedule", "constant, cosine, one_"),
    "an entry's warm-up": (
        "lr: 0.01}", "lr: 0.01, schedule: {name: cosine, warmup_epochs: 2}}",
        "13: optimizers.sgd.schedule.warmup_epochs", "must be less than epochs, 2"),
    "a schedule of a fallback": (
        "lr: 0.01}", "lr: 0.01, fallback: {class: Adam, schedule: {name: cosine}}}",
        "13: optimizers.sgd", "fallback.schedule would never be used"),
    "graph": ("lr: 0.01}", "lr: 0.01, create_graph: 1}", "13: optimizers.sgd.create_graph", "valid boolean"),
    # schedules
    "warm-up as long as the run": (
        "{name: constant}", "{name: cosine, warmup_epochs: 2}",
        "11: training", "schedule.warmup_epochs is 2, which must be less than epochs, 2"),
    "negative warm-up": (
        "{name: constant}", "{name: cosine, warmup_epochs: -1}",
        "11: training.schedule.warmup_epochs", "greater than or equal to 0"),
    "endless warm-up": (
        "{name: constant}", "{name: one_cycle, warmup_epochs: .inf}",
        "11: training.schedule.warmup_epochs", "finite number"),
    "wrong schedule": ("{name: constant}", "{name: linear}", "11: training.schedule", "constant, cosine, one_cycle"),
    "schedule without a name": ("{name: constant}", "{}", "11: training.schedule", "name must be one of"),
    "bare schedule": ("{name: constant}", "cosine", "11: training.schedule", "must be a mapping"),
    "step without its length": (
        "{name: constant}", "{name: step}", "11: training.schedule.step_epochs", "add this key"),
    "growing step": (
        "{name: constant}", "{name: step, step_epochs: 1, gamma: 2}",
        "11: training.schedule.gamma", "less than or equal to 1, not 2"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "phrase"), EDITS.values(), ids=EDITS)
def test_invalid_value_error_names_line_and_remedy(tmp_path, old, new, place, phrase):
    message = load_error_message(tmp_path, edit_params(old, new))
    # A check over several keys may name its own key after a colon instead of a dot.
    assert message.replace(": ", ".").startswith("params.yaml:" + place.replace(": ", ".")), message
    assert phrase in message


LONG = {
    "endless seeds": ("[0, 1]", ENDLESS, "2: seeds.0", "valid integer"),
    "endless number": ("epochs: 2", f"epochs: {ENDLESS}", "8: training.epochs", "valid integer"),
    "endless section": ("{name: constant}", ENDLESS, "11: training.schedule", "must be a mapping"),
    "endless name of a schedule": (
        "{name: constant}", f"{{name: {ENDLESS}}}", "11: training.schedule", "constant, cosine, one_cycle"),
    "endless lr": ("lr: 0.01}", f"lr: {ENDLESS}}}", "13: optimizers.sgd.lr", "list of numbers"),
    "seed of 20,000 bits": ("[0, 1]", f"[{HEXADECIMAL}]", "2: seeds.0", "thousands of digits"),
    "threads of 20,000 bits": ("threads: 2", f"threads: {HEXADECIMAL}", "10: training.threads", "thousands of"),
    "lr of 20,000 bits": ("lr: 0.01}", f"lr: {HEXADECIMAL}}}", "13: optimizers.sgd", "thousands of digits"),
    "long text": ("epochs: 2", f"epochs: {'two' * 1000}", "8: training.epochs", "valid integer, not 'twotwo"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "phrase"), LONG.values(), ids=LONG)
def test_oversized_value_error_is_short(tmp_path, old, new, place, phrase):
    message = load_error_message(tmp_path, edit_params(old, new))
    assert message.startswith(f"params.yaml:{place}: "), message[:200]
    assert phrase in message
    assert len(message) < 500


@pytest.mark.parametrize("depth", [50, *range(100, 1000, 50), 20_000])
def test_deeply_nested_value_is_refused(tmp_path, depth):
    """The reader that finds the line of an error gives up before the one that finds the error."""
    message = load_error_message(tmp_path, edit_params("class: SGD", f"class: {'{a: ' * depth}1{'}' * depth}"))
    assert "optimizers.sgd.class" in message or "not valid YAML" in message


def test_unknown_schedule_key_is_not_suggested(tmp_path):
    message = load_error_message(tmp_path, edit_params("{name: constant}", "{name: cosine, gamma: 0.1}"))
    assert message.startswith("params.yaml:11: training.schedule.gamma: unknown key")
    assert "did you mean gamma" not in message


OPTIMIZERS = {
    "no key": ("", "optimizers", "add this key"),
    "null": ("optimizers:\n", "12: optimizers", "such as `adam: {class: Adam, lr: 0.001}`"),
    "empty mapping": ("optimizers: {}\n", "12: optimizers", "give it at least one"),
    "no body": ("optimizers:\n  sgd:\n", "13: optimizers.sgd", "has no body: give it one, such as {class: Adam"),
    "list": ("optimizers: [SGD]\n", "12: optimizers", "must be a mapping"),
    "list of mappings": ("optimizers:\n  - class: SGD\n", "12: optimizers", "must be a mapping"),
    "one word": ("optimizers: SGD\n", "12: optimizers", "must be a mapping"),
    "word as a body": ("optimizers:\n  sgd: SGD\n", "13: optimizers.sgd", "must be a mapping"),
    "body without a class": ("optimizers:\n  sgd: {lr: 1}\n", "13: optimizers.sgd.class", "add this key"),
    "number as a class": ("optimizers:\n  sgd: {class: 3}\n", "13: optimizers.sgd.class", "string, not 3"),
    "empty class": ("optimizers:\n  sgd: {class: ''}\n", "13: optimizers.sgd.class", "at least 1 character"),
    "words in a list": ("optimizers:\n  sgd: {class: SGD, x: [a]}\n", "13: optimizers.sgd.x", "list of numbers"),
    "mapping as a value": (
        "optimizers:\n  sgd: {class: SGD, x: {a: 1}}\n", "13: optimizers.sgd.x", "a mapping here is a range, such"),
    "range the wrong way round": (
        "optimizers:\n  sgd: {class: SGD, lr: {log: [1, 0.1]}}\n", "13: optimizers.sgd.lr", "log must be two numbers"),
    "unknown key of the tuning": (
        "tuning: {trails: 3}\noptimizers:\n  sgd: {class: SGD}\n", "12: tuning.trails", "did you mean trials?"),
    "date as a value": ("optimizers:\n  sgd: {class: SGD, x: 2024-01-01}\n", "13: optimizers.sgd.x", "numbers"),
    "word as a fallback": (
        "optimizers:\n  muon: {class: Muon, fallback: AdamW}\n", "13: optimizers.muon.fallback", "be a mapping"),
    "fallback without a class": (
        "optimizers:\n  muon: {class: Muon, fallback: {lr: 1}}\n", "13: optimizers.muon.fallback.class", "add this"),
    "fallback with a bad lr": (
        "optimizers:\n  muon: {class: Muon, fallback: {class: SGD, lr: -1}}\n", "13: optimizers.muon.fallback",
        "lr must be a number from 0 up"),
    # Names that become DVC's stage names and parameter paths.
    "whole number as a name": ("optimizers:\n  1: {class: SGD}\n", "13: optimizers.1", RENAME),
    "fraction as a name": ("optimizers:\n  1.5: {class: SGD}\n", "13: optimizers.1.5", RENAME),
    "name for no file": (f"optimizers:\n  {'a' * 101}: {{class: SGD}}\n", f"13: optimizers.{'a' * 101}", RENAME),
    "dot in a name": ("optimizers:\n  sgd.fast: {class: SGD}\n", "13: optimizers.sgd.fast", RENAME),
    "dash in a name": ("optimizers:\n  sgd-fast: {class: SGD}\n", "13: optimizers.sgd-fast", RENAME),
    "upper case in a name": ("optimizers:\n  SGD: {class: SGD}\n", "13: optimizers.SGD", RENAME),
    "space in a name": ("optimizers:\n  sgd fast: {class: SGD}\n", "13: optimizers.sgd fast", RENAME),
    "letter beyond ASCII in a name": ("optimizers:\n  é: {class: SGD}\n", "13: optimizers.é", RENAME),
    "empty name": ("optimizers:\n  '': {class: SGD}\n", "13: optimizers.", RENAME),
}  # fmt: skip


@pytest.mark.parametrize(("text", "place", "phrase"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_invalid_optimizer_entry_error_names_line(tmp_path, text, place, phrase):
    message = load_error_message(tmp_path, BEFORE_OPTIMIZERS + text)
    separator = ":" if place[0].isdigit() else ": "
    assert message.startswith(f"params.yaml{separator}{place}: "), message
    assert phrase in message


@pytest.mark.parametrize("name", ["true", "null", "2024-01-01"])
def test_optimizer_name_parsed_as_non_string_is_refused(tmp_path, name):
    message = load_error_message(tmp_path, f"{BEFORE_OPTIMIZERS}optimizers:\n  {name}: {{class: SGD}}\n")
    assert message.startswith("params.yaml:1") and "optimizers" in message
    assert RENAME in message


def test_empty_class_error_differs_from_empty_body(tmp_path):
    message = load_error_message(tmp_path, f"{BEFORE_OPTIMIZERS}optimizers:\n  sgd:\n    lr: 1\n    class:\n")
    assert message.startswith("params.yaml:15: optimizers.sgd.class: ")
    assert "no body" not in message


# The schema has parts of these names: they must not be taken out of a user's own path.
@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle", "step", "bool", "int", "float", "str"])
def test_error_path_keeps_optimizer_name(tmp_path, name):
    message = load_error_message(tmp_path, f"{BEFORE_OPTIMIZERS}optimizers:\n  {name}: {{lr: 1}}\n")
    assert message.startswith(f"params.yaml:13: optimizers.{name}.class: missing")


SPLITS = {
    "test split with validation": (
        params_on_test_split(50, 50),
        ":7: data",
        "validation_size must be 0 when train_split",
    ),
    "validations in vain": (
        params_on_test_split(100, 0).replace("threads: 2", "threads: 2\n  validations_per_epoch: 2"),
        ":12: training.validations_per_epoch",
        "has no use where data.validation_size is 0",
    ),
    "a target that nobody sees": (
        params_on_test_split(100, 0) + "verdict: {target: 0.5}\n",
        ":18: verdict.target",
        "is a validation accuracy, but",
    ),
    "no split to draw again": (
        params_on_test_split(100, 0).replace("  train_size", "  resplit: true\n  train_size"),
        ":6: data",
        "resplit must be false where validation_size is 0",
    ),
    "more than the test split": (params_on_test_split(110, 0), ":6: data", "the test split of cifar10_sample has 100"),
}


@pytest.mark.parametrize(("text", "place", "phrase"), SPLITS.values(), ids=SPLITS)
def test_invalid_test_split_sizes_are_refused(tmp_path, text, place, phrase):
    message = load_error_message(tmp_path, text)
    assert message.startswith("params.yaml" + place), message
    assert phrase in message


ACCEPTED = {
    "the whole test split": params_on_test_split(100, 0),
    "the whole train split": edit_params("validation_size: 100", "validation_size: 100"),
    "a batch of all images": edit_params("batch_size: 64", "batch_size: 400"),
    "lines that end as on Windows": GOOD.replace("\n", "\r\n"),
    "warm-up of half an epoch": edit_params("{name: constant}", "{name: cosine, warmup_epochs: 0.5}"),
    "a learning rate of zero": edit_params("lr: 0.01}", "lr: 0}"),
    "pairs, true and text": edit_params("lr: 0.01}", "betas: [0.9, 0.999], nesterov: true, mode: fast, x: null}"),
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_valid_params_variants_are_accepted(tmp_path, text):
    load_params(tmp_path, text)


def test_params_section_used_by_stages_is_required(tmp_path):
    """DVC refuses to run a stage without it, even where all of its keys have defaults."""
    pipeline = "stages: {tune: {cmd: x, params: [data, tuning, 'optimizers.${item}', {other.yaml: [seeds]}]}}\n"
    (tmp_path / "params.yaml").write_text(GOOD)
    assert loader.load_for_stages(tmp_path).tuning.trials == 16  # without a dvc.yaml
    (tmp_path / "dvc.yaml").write_text(pipeline)
    with pytest.raises(ConfigError, match=r"params\.yaml: no section `tuning`, .*: add `tuning: \{\}`$"):
        loader.load_for_stages(tmp_path)
    (tmp_path / "params.yaml").write_text(f"{GOOD}tuning: {{}}\n")
    assert loader.load_for_stages(tmp_path).tuning.trials == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages:\n<<<<<<< HEAD\n", "2: conflict markers of a git merge"),
        ("stages: {x: {cmd: y, params: }}\n", None),
        ("stages: {x: {cmd: y, params: ['${item}.lr']}}\n", None),
        ("stages:\n\tx\n", " no stages of a DVC pipeline"),
        ("plots: []\n", " no stages of a DVC pipeline"),
        ("stages: [1]\n", " no stages of a DVC pipeline"),
    ],
)
def test_unusable_pipeline_is_one_line(tmp_path, text, said):
    (tmp_path / "params.yaml").write_text(GOOD)
    (tmp_path / "dvc.yaml").write_text(text)
    if said is None:
        assert loader.load_for_stages(tmp_path).seeds
        return
    with pytest.raises(ConfigError) as caught:
        loader.load_for_stages(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'dvc.yaml'}:{said}") and "\n" not in str(caught.value)


def test_error_message_counts_further_errors(tmp_path):
    text = edit_params("epochs: 2", "epochs: 0").replace("threads: 2", "threads: 0")
    assert load_error_message(tmp_path, text).endswith("(and 1 more)")


# YAML 1.1 reads 1e-3 as text, and so do the parsers that most Python programs use.
@pytest.mark.parametrize(("written", "value"), [("1e-3", 0.001), ("1E-3", 0.001), ("1.0e-3", 0.001), ("2", 2)])
def test_lr_in_scientific_notation_is_number(tmp_path, written, value):
    loaded = load_params(tmp_path, edit_params("lr: 0.01}", f"lr: {written}}}"))
    assert loaded.get_optimizer("sgd").hyperparameters == {"lr": value}


@pytest.mark.parametrize("path", ["params.yaml", "tutorial/params.yaml"])
def test_committed_params_files_are_valid(path):
    loaded = loader.load(ROOT / path)
    checks.check_config(loaded)
    assert loaded.data.dataset == "cifar10"


def test_commented_optimizers_in_params_are_valid(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    uncommented, count = re.subn(r"^  # (\w+: \{class:)", r"  \1", text, flags=re.MULTILINE)
    assert count >= 4
    before, after = loader.load(ROOT / "params.yaml"), load_params(tmp_path, uncommented)
    assert len(after.optimizers) == len(before.optimizers) + count
    defaults = {name: spec.replace_ranges({}) for name, spec in after.optimizers.items()}
    checks.check_config(after.model_copy(update={"optimizers": defaults}))


def test_hyperparameter_refused_by_class_is_named(tmp_path):
    loaded = load_params(tmp_path, edit_params("lr: 0.001", 'lr: 0.001\n    weight_decay: "much"'))
    with pytest.raises(
        ConfigError, match=r"^params\.yaml: optimizers\.adam\.weight_decay: Adam takes a number, not 'much'$"
    ):
        checks.check_config(loaded)


def test_unknown_optimizer_error_suggests_nearest_name(small_config):
    with pytest.raises(ConfigError, match=r"^params\.yaml: there is no optimizer 'adm': did you mean adam\?$"):
        small_config().get_optimizer("adm")


def test_dump_has_mirror_test_only_where_it_is_on(small_config):
    """Digests, reports and MLflow's parameters of comparisons without it are those of earlier versions."""
    dumps = [small_config(data={"mirror_test": is_on}).model_dump()["data"] for is_on in (False, True)]
    assert dumps[1] == dumps[0] | {"mirror_test": True} and "mirror_test" not in dumps[0]


def test_config_is_frozen(small_config):
    with pytest.raises(ValueError, match="frozen"):
        small_config().training.epochs = 3


def test_run_id():
    assert parameters.format_run_id("adam", 0) == "adam-0"


def test_config_import_does_not_load_torch():
    code = "import sys, optlab.schema.parameters, optlab.config.loader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 0
