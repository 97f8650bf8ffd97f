"""`optlab repro --until-decided`: from look to look, until nothing is left to decide; killed, and repeated."""

import re
import signal

import projects
import pytest

COMMAND = ("optlab", "repro", "--until-decided")
# Two equal optimizers, which no number of seeds tells apart, and of which three seeds show no equivalence: the scatter
# counts as that of 100 test images.
OPTIMIZERS = """\
  one: {class: SGD, lr: 0.01}
  two: {class: SGD, lr: 0.01}
"""
SETTINGS = "verdict: {looks: [2, 3]}  # kept\n"


@pytest.fixture
def twins(fresh):
    """A project with two equal optimizers, and looks at two and three seeds."""
    fresh.edit("params.yaml", "  sgd: {class: SGD, lr: 0.01}\n  adam: {class: Adam, lr: 0.001}\n", OPTIMIZERS)
    fresh.edit("params.yaml", "tuning: {trials: 4, halving: 2}", SETTINGS + "tuning: {trials: 1, halving: 1}")
    fresh.edit("params.yaml", "epochs: 2", "epochs: 1")
    return fresh


def read_outputs(project):
    """The bytes of params.yaml, dvc.lock, and all that git has of runs, tunings and reports."""
    files = [project.top / name for name in ("params.yaml", "dvc.lock")]
    files += [path for name in ("runs", "tuning", "reports") for path in (project.top / name).rglob("*")]
    return {str(path.relative_to(project.top)): path.read_bytes() for path in files if path.is_file()}


def list_looks(result):
    assert result.returncode == 0, result.stdout + result.stderr
    return [line for line in result.stdout.splitlines() if line.startswith("look ")]


def test_killed_and_repeated_command_ends_with_same_bytes(twins, tmp_path):
    """Killed as further seeds are in params.yaml, and while their runs are trained."""
    for name in ("one", "two"):
        twins.edit(
            "params.yaml", f"{name}: {{class: SGD, lr: 0.01}}", f"{name}: {{class: SGD, lr: {{log: [0.001, 1]}}}}"
        )
    whole = twins.copy(tmp_path / "whole")
    before = (whole.top / "params.yaml").read_text()
    result = whole.run_forked(*COMMAND)
    assert list_looks(result) == ["look 1 of 2: 2 seeds", "look 2 of 2: 3 seeds"]
    assert result.stdout.splitlines()[-1] == "one and two are undecided with 3 seeds, look 2 of 2."
    assert (whole.top / "params.yaml").read_text() == before.replace("seeds: [0]", "seeds: [0, 1, 2]")
    searched = re.findall(r"^(\w+-\d): (?:trial \d|the default) is the best", result.stdout, re.MULTILINE)
    assert sorted(searched[:4]) == ["one-0", "one-1", "two-0", "two-1"]
    assert sorted(searched[4:]) == ["one-2", "two-2"]  # a further seed has a search of its own, and repeats none
    rounds = re.findall(r"^(\w+-\d): \d+ trials?: best validation accuracy at step", result.stdout, re.MULTILINE)
    assert set(rounds) == set(searched)  # there is no terminal that shows bars
    trained = {path.stat().st_mtime_ns for path in whole.top.glob("models/*-[01].safetensors")}
    compared = min(path.stat().st_mtime_ns for path in whole.top.glob("models/*-2.safetensors"))
    assert len(trained) == 4 and max(trained) < compared

    def has_seeds(text):
        return f"seeds: {text}" in (twins.top / "params.yaml").read_text()

    def has_run(seed):
        return list(twins.top.glob(f"runs/*-{seed}/train.json"))

    for each in (lambda: has_seeds("[0, 1, 2]"), lambda: has_run(2)):
        with projects.started(twins, *COMMAND, forked=True) as process:
            projects.until(process, each)
            process.send_signal(signal.SIGKILL)
            process.wait()
    result = twins.run_forked(*COMMAND)
    assert [line.partition(",")[0] for line in list_looks(result)] == ["look 2 of 2: 3 seeds"]
    assert read_outputs(twins) == read_outputs(whole)


def test_decided_pairs_need_no_further_look(twins):
    """Nearly any difference is within this margin, so two seeds show equivalence; and nothing is trained twice."""
    twins.edit("params.yaml", "{looks: [2, 3]}", "{looks: [2, 3], margin: 0.99}")
    result = twins.run_forked(*COMMAND, "--question", "best")
    assert list_looks(result) == ["look 1 of 2: 2 seeds"]
    assert result.stdout.splitlines()[-1] == (
        "The best are one and two, equivalent to each other, with 2 seeds, look 1 of 2."
    )
    before = read_outputs(twins)
    result = twins.run_forked(*COMMAND)
    assert list_looks(result) == ["look 1 of 2: 2 seeds"]
    assert result.stdout.splitlines()[-1] == "The pair is decided with 2 seeds, look 1 of 2."
    assert read_outputs(twins) == before
