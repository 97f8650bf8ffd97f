"""How many seeds `optlab repro --until-decided` adds, and what it says: with records written by hand for trainings."""

import re

import pytest
from test_comparison import write_record

from optlab import records
from optlab.config import loader
from optlab.orchestration import sequential_repro
from optlab.records import EvalRecord
from optlab.system.errors import ConfigError

PARAMS = """\
# Mine.
model: zilliax
seeds: [0]   # to begin with
data: {train_size: 100, validation_size: 20}
training: {epochs: 1, batch_size: 16, threads: 2}
verdict: {margin: 0.1, looks: [3, 6]}
optimizers:
"""
# Optimizer → its test accuracy with each seed. `steady` is equivalent to `swinging` with six seeds, not with three;
# `worse` is decided with three, and `wild` never.
ACCURACIES = {
    "steady": [0.5] * 7,
    "swinging": [0.6, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5],
    "worse": [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
    "wild": [0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1],
    "wilder": [0.9, 0.0, 0.9, 0.0, 0.9, 0.0, 0.9],
    "wildest": [0.0, 0.9, 0.9, 0.0, 0.9, 0.0, 0.0],
}


@pytest.fixture
def reproduce(tmp_path, monkeypatch, capsys):
    """A function that runs the command, and returns the numbers of seeds that it trained and the lines it printed."""
    monkeypatch.chdir(tmp_path)

    def write(*names, seeds="[0]"):
        entries = "".join(f"  {name}: {{class: SGD, lr: 0.01}}\n" for name in names)
        (tmp_path / "params.yaml").write_text(PARAMS.replace("[0]", seeds) + entries)

    def run(*names, seeds="[0]", question="pairs", at_most=None, diverged=()):
        write(*names, seeds=seeds)
        before, trained = (tmp_path / "params.yaml").read_text(), []

        def train(config):
            assert loader.load() == config  # the file is written first
            trained.append(len(config.seeds))
            write_record(tmp_path, config, [0.5] * len(config.list_runs()), [f"{name}-0" for name in diverged])
            for index, (name, seed) in enumerate(config.list_runs()):
                path = records.RunFiles(tmp_path, name, seed).test
                accuracy = None if f"{name}-{seed}" in diverged else ACCURACIES[name][index % len(config.seeds)]
                if name not in diverged:
                    EvalRecord.read(path).model_copy(update={"test_accuracy": accuracy}).write(path)

        sequential_repro.run(loader.load(), tmp_path, train, question, at_most)
        after = (tmp_path / "params.yaml").read_text()
        found = re.search(r"seeds: (\[.*\])", after)[1]
        assert after == before.replace(seeds, found)
        return found, trained, capsys.readouterr().out.splitlines()

    run.write = write
    return run


def test_first_look_is_enough_where_it_decides(reproduce):
    assert reproduce("steady", "worse") == (
        "[0, 1, 2]", [3], ["look 1 of 2: 3 seeds", "The pair is decided with 3 seeds, look 1 of 2."]
    )  # fmt: skip


def test_seeds_are_added_until_every_pair_is_decided(reproduce):
    assert reproduce("steady", "worse", "swinging") == (
        "[0, 1, 2, 3, 4, 5]", [3, 6],
        [
            "look 1 of 2: 3 seeds", "look 2 of 2: 6 seeds",
            "Every pair is decided with 6 seeds, look 2 of 2.",
        ],
    )  # fmt: skip
    # The same again: nothing is added, and the last look is taken at once.
    seeds, trained, lines = reproduce("steady", "worse", "swinging", seeds="[0, 1, 2, 3, 4, 5]")
    assert (seeds, trained) == ("[0, 1, 2, 3, 4, 5]", [6])
    assert lines[0] == "look 2 of 2: 6 seeds"


def test_last_look_ends_undecided(reproduce):
    _, trained, lines = reproduce("steady", "worse", "wild")
    assert trained == [3, 6]
    assert lines[-1] == "2 of 3 pairs are undecided (steady and wild, wild and worse) with 6 seeds, look 2 of 2."


def test_no_look_is_taken_above_the_limit(reproduce):
    seeds, trained, lines = reproduce("steady", "swinging", at_most=5)
    assert (seeds, trained) == ("[0, 1, 2]", [3])
    assert lines[-1] == "steady and swinging are undecided with 3 seeds, look 1 of 2."


def test_seeds_beyond_a_look_stay(reproduce):
    """Four seeds are trained as they are, and what the first three decide is no reason for more."""
    seeds, trained, lines = reproduce("steady", "worse", seeds="[0, 7, 4, 5]")
    assert (seeds, trained) == ("[0, 7, 4, 5]", [4])
    assert lines[0] == "look 1 of 2: 4 seeds, the first 3 of which count"
    assert lines[-1] == "The pair is decided with 3 seeds, look 1 of 2."
    seeds, trained, _ = reproduce("steady", "swinging", seeds="[0, 7, 4, 5]")
    assert (seeds, trained) == ("[0, 7, 4, 5, 8, 9]", [4, 6])
    for at_most in (None, 3):
        seeds, trained, lines = reproduce("steady", "wild", seeds="[0, 1, 2, 3, 4, 5, 6]", at_most=at_most)
        assert (seeds, trained) == ("[0, 1, 2, 3, 4, 5, 6]", [7])
        assert lines[0].startswith("look 2 of 2: 7 seeds, the first 6 of which count")


def test_question_of_the_best_leaves_other_pairs_undecided(reproduce):
    _, trained, lines = reproduce("steady", "worse", "swinging", question="best")
    assert trained == [3, 6]
    assert lines[-1] == "The best are steady and swinging, equivalent to each other, with 6 seeds, look 2 of 2."
    _, trained, lines = reproduce("steady", "worse", question="best")
    assert (trained, lines[-1]) == ([3], "steady is better than every other optimizer with 3 seeds, look 1 of 2.")
    *_, lines = reproduce("steady", "wild", question="best")
    assert lines[-1] == (
        "No optimizer is known to be the best with 6 seeds, look 2 of 2. steady and wild are undecided."
    )


def test_many_undecided_pairs_are_counted(reproduce):
    _, _, lines = reproduce(*ACCURACIES, at_most=3)
    told = re.fullmatch(
        r"(\d+) of 15 pairs are undecided, with the smallest differences \((.*)\) with 3 seeds, look 1 of 2\.",
        lines[-1],
    )
    assert int(told[1]) > 6 and len(told[2].split(", ")) == 3 and "steady and swinging" in told[2]


@pytest.mark.parametrize("question", ["pairs", "best"])
def test_no_pair_is_left_after_divergence(reproduce, question):
    _, trained, lines = reproduce("steady", "worse", question=question, diverged=["worse"])
    assert trained == [3]
    assert lines[-1] == (
        "There is no pair to decide with 3 seeds, look 1 of 2: fewer than two optimizers completed all their runs."
    )


REFUSED = {
    "a limit below the first look": (
        ["steady", "worse"], {"at_most": 2}, {}, "--at-most 2: the first look is at 3 seeds: give 3 or more"
    ),
    "one optimizer": (["steady"], {}, {}, "params.yaml: has one optimizer, so there is no pair to decide: add another"),
    "no room for seeds": (["steady", "worse"], {}, {"seeds": "[4294967291]"}, r"params.yaml:3: seeds\.5"),
}  # fmt: skip


@pytest.mark.parametrize(("names", "options", "written", "said"), REFUSED.values(), ids=REFUSED)
def test_refused_command_trains_and_writes_nothing(reproduce, tmp_path, names, options, written, said):
    before = reproduce.write(*names, **written) or (tmp_path / "params.yaml").read_text()
    with pytest.raises(ConfigError, match=said):
        sequential_repro.run(loader.load(), tmp_path, pytest.fail, **options)
    assert (tmp_path / "params.yaml").read_text() == before


def test_pipeline_of_another_study_is_refused(reproduce, tmp_path):
    """Its seeds are not its own to choose."""
    reproduce.write("steady", "worse", seeds="[0, 1]")
    (tmp_path / "dvc.yaml").write_text("stages: {compare: {cmd: python pipeline/versus.py ../optimizers}}\n")
    with pytest.raises(ConfigError, match=r"has the seeds of .*/optimizers: run `optlab repro --until-decided` there"):
        sequential_repro.run(loader.load(), tmp_path, pytest.fail)
