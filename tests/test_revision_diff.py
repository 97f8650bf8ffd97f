"""The present comparison beside that of a git revision, from records written by hand."""

import re
import shutil
import subprocess

import pytest

from optlab.analysis import revision_diff
from optlab.config import loader
from optlab.orchestration import versus
from optlab.records import Environment, EvalRecord, RunFiles, TrainRecord
from optlab.system.errors import ConfigError, RecordError, RevisionError
from optlab.system.files import compute_md5
from optlab.system.git import Revision

PARAMS = """\
model: zilliax
seeds: [0, 1, 2]
verdict: {looks: [3]}
data: {train_size: 400, validation_size: 100}
training: {epochs: 1, batch_size: 64, threads: 2}
optimizers:
  sgd: {class: SGD, lr: 0.01}
  adam: {class: Adam, lr: 0.001}
"""
THEN = {"sgd": [0.3, 0.31, 0.3], "adam": [0.52, 0.5, 0.54]}


def git(*words):
    subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *words], check=True)


def write_record(top, accuracies, params=PARAMS, **conditions):
    """A record with these test accuracies, None of a run that diverged; returns its configuration."""
    (top / "params.yaml").write_text(params)
    config = loader.load(top / "params.yaml")
    for name, seed in config.list_runs():
        files, value = RunFiles(top, name, seed), accuracies[name][config.seeds.index(seed)]
        status, digest = ("completed", f"{name} {value}") if value is not None else ("diverged", "none")
        TrainRecord(
            status=status, epochs=1, train_loss=1.0, validation_loss=1.0, validation_accuracy=0.5,
            weights_sha256=digest, history=[], step_losses=[[1.0]],
        ).write(files.training)  # fmt: skip
        EvalRecord(status=status, test_accuracy=value, test_loss=1.0, expected_calibration_error=0.1).write(files.test)
        Environment(**{"cpu": "AMD", "weights_sha256": digest} | conditions).write(files.environment)
    return config


@pytest.fixture
def top(tmp_path, monkeypatch):
    """A repository whose tag v1 has the record of `THEN`; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    write_record(tmp_path, THEN)
    git("add", "-A")
    git("commit", "-qm", "record")
    git("tag", "v1")
    return tmp_path


def report_lines(config, top, *revisions):
    """Its lines, with one space between the columns."""
    text = revision_diff.build_report(config, top.relative_to(top), [Revision.parse(name) for name in revisions])
    return [" ".join(line.split()) for line in text.splitlines() if line.strip("─")]


def test_revision_diff_pairs_optimizers_by_seed(top):
    """Numbers of scipy's `ttest_ind(…, equal_var=False)`: intervals at 97.5 %, sgd's p twice, adam's once (Holm)."""
    config = write_record(top, {"sgd": [0.4, 0.412, 0.4], "adam": [0.53, 0.531, 0.53]})
    assert report_lines(config, top, "v1") == [
        "Test accuracy now less that at the revision, over the seeds of both; intervals hold for 2 differences at "
        "once, with 95 %.",
        "optimizer n v1 now now − v1 p wins verdict",
        "adam 3 52.00 ± 4.97 % 53.03 ± 0.14 % 1.03 points (−6.12 to 8.19) 0.47 2 of 3 undecided",
        "sgd 3 30.33 ± 1.43 % 40.40 ± 1.72 % 10.07 points (8.22 to 11.92) 0.00011 3 of 3 now better",
    ]


def test_revision_diff_reports_worse_result(top):
    config = write_record(top, {"sgd": [0.2, 0.21, 0.201], "adam": THEN["adam"]})
    title, *_, adam, sgd = report_lines(config, top, "v1")
    assert title.endswith("; intervals hold for 1 difference at once, with 95 %.")
    assert sgd.startswith("sgd 3 30.33 ± 1.43 % 20.37 ± 1.37 % −9.97 points (")
    assert sgd.endswith(" 2.7e-05 0 of 3 v1 better")
    assert adam == "adam 3 52.00 ± 4.97 % 52.00 ± 4.97 % – – – the same weights"


def test_revision_diff_lists_params_and_environment_changes(top):
    params = PARAMS.replace("lr: 0.001", "lr: 0.002").replace("epochs: 1", "epochs: 2").replace("  sgd:", "  other:")
    params = params.replace("looks: [3]", "margin: 0.1, looks: [2]").replace("[0, 1, 2]", "[2, 1, 3]")
    config = write_record(top, {"other": [0.3] * 3, "adam": [0.6, 0.61, 0.62]}, params, cpu="Intel")
    _, _, adam, *rest = report_lines(config, top, "v1")
    assert adam.startswith("adam 2 52.00 ± 25.41 % 60.50 ± 6.35 % 8.50 ")  # of the seeds 1 and 2
    assert rest == [
        "only at v1: sgd",
        "only now: other",
        "params.yaml since v1: training.epochs 1 → 2; optimizers.adam.lr 0.001 → 0.002",
        "other conditions since v1, so a difference need not be the optimizer's: CPU AMD → Intel (adam-2, adam-1)",
    ]


def test_revision_diff_corrects_for_several_revisions(top):
    write_record(top, {"sgd": [0.35, 0.36, 0.34], "adam": [0.5, 0.51, 0.54]})
    git("commit", "-qam", "another record")
    git("tag", "v2")
    config = write_record(top, {"sgd": [0.4, 0.412, 0.4], "adam": [0.53, 0.531, 0.53]})
    lines = report_lines(config, top, "v1", "v2")
    assert lines[0].endswith("intervals hold for 4 differences at once, with 95 %.")
    assert [line.split()[2] for line in lines if line.startswith("optimizer")] == ["v1", "v2"]
    assert next(line.split(") ")[1] for line in lines if line.startswith("sgd")) == "0.00021 3 of 3 now better"


def test_each_revision_is_compared_over_its_own_seeds(top):
    """The present runs with the seeds of one revision are not those with the seeds of another."""
    second = PARAMS.replace("[0, 1, 2]", "[3, 4, 5]")
    write_record(top, {"sgd": [0.2, 0.21, 0.22], "adam": [0.3, 0.31, 0.3]}, second)
    git("add", "-A")
    git("commit", "-qm", "other seeds")
    git("tag", "v2")
    now = {"sgd": [0.4, 0.412, 0.4, 0.3, 0.31, 0.312], "adam": [0.53, 0.531, 0.53, 0.6, 0.61, 0.6]}
    config = write_record(top, now, PARAMS.replace("[0, 1, 2]", "[0, 1, 2, 3, 4, 5]"))
    lines = report_lines(config, top, "v1", "v2")
    differences = [
        re.search(r"% (−?[0-9.]+) points .* (\d) of 3 ", line).groups() for line in lines if " of 3 " in line
    ]
    assert differences == [("1.03", "2"), ("10.07", "3"), ("30.00", "3"), ("9.73", "3")]


def test_means_are_of_the_seeds_of_the_look(top):
    """Four seeds in common, and one look at three: the columns and their difference have the first three."""
    params = PARAMS.replace("[0, 1, 2]", "[0, 1, 2, 3]")
    write_record(top, {name: [*values, 0.9] for name, values in THEN.items()}, params)
    git("add", "-A")
    git("commit", "-qm", "four seeds")
    config = write_record(top, {"sgd": [0.4, 0.412, 0.4, 0.1], "adam": [0.53, 0.531, 0.53, 0.1]}, params)
    lines = report_lines(config, top, "HEAD")
    assert lines[2].startswith("adam 3 of 4 52.00 ± 4.97 % 53.03 ± 0.14 % 1.03 points (")


NONE = {
    "diverged then": ({"adam": [None, 0.5, 0.54]}, {}, "– – – diverged"),
    "diverged now": ({}, {"adam": [0.52, None, 0.6]}, "– – – diverged"),
    "all diverged": ({"adam": [None] * 3}, {"adam": [0.5] * 3}, "adam 0 of 3 – – – – – diverged"),
}


@pytest.mark.parametrize(("then", "now", "ending"), NONE.values(), ids=NONE)
def test_diverged_run_has_no_verdict(top, then, now, ending):
    write_record(top, THEN | then)
    git("commit", "-q", "--allow-empty", "-am", "with a divergence")
    lines = report_lines(write_record(top, THEN | now), top, "HEAD")
    adam = next(line for line in lines if line.startswith("adam"))
    assert adam.startswith(("adam 2 of 3 ", "adam 0 of 3 ")) and adam.endswith(ending)


@pytest.mark.parametrize(("seeds", "said"), [
    ("[2, 3]", "1 seed in common, the first look is at 3"), ("[7, 8]", "no seed in common")
])  # fmt: skip
def test_verdict_needs_common_seeds_for_a_look(top, seeds, said):
    config = write_record(top, {"sgd": [0.4, 0.5], "adam": [0.4, 0.5]}, PARAMS.replace("[0, 1, 2]", seeds))
    lines = report_lines(config, top, "v1")
    assert lines[0] == "Test accuracy now less that at the revision, over the seeds of both: there is no verdict."
    assert lines[-1].endswith(f"– – – {said}")


ON_TRAIN = "{train_size: 400, validation_size: 100}"
ON_TEST = "{train_split: test, train_size: 100, validation_size: 0}"
REFUSED = {
    "no record": (lambda top: (top / "runs/adam-1/test.json").unlink(), "v2: the record of adam-1 is incomplete"),
    "damaged": (lambda top: (top / "runs/sgd-0/train.json").write_text("{"), "v2: the record of sgd-0 is incomplete"),
    "an evaluation of other weights": (
        lambda top: EvalRecord(status="completed", weights_sha256="x", test_accuracy=0.5).write(
            RunFiles(top, "adam", 1).test),
        "v2: runs/adam-1/test.json evaluates other weights than runs/adam-1/train.json has: "),
    "no params.yaml": (lambda top: (top / "params.yaml").unlink(), "v2: has no params.yaml"),
    "other params.yaml": (
        lambda top: (top / "params.yaml").write_text(PARAMS.replace("lr: 0.001", "lr: x")), "v2:params.yaml:8: "),
    "another figure": (
        lambda top: write_record(top, THEN, PARAMS.replace(ON_TRAIN, ON_TEST)),
        "v2: its runs are judged by their training loss, and the present ones by their test accuracy"),
    "other images": (
        lambda top: write_record(top, THEN, PARAMS.replace("data: {", "data: {dataset: cifar10_sample, ")),
        "v2: its images are those of cifar10_sample: "),
    "other optimizers": (
        lambda top: write_record(top, {"lion": [0.5] * 3, "muon": [0.5] * 3},
                          PARAMS.replace("sgd:", "lion:").replace("adam:", "muon:")),
        "v2: has none of the present optimizers: it has lion, muon"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_incomparable_revision_gives_one_line_error(top, change, message):
    change(top)
    git("add", "-A")
    git("commit", "-qm", "changed")
    git("tag", "v2")
    config = write_record(top, THEN)
    with pytest.raises((RevisionError, ConfigError, RecordError)) as caught:
        report_lines(config, top, "v1", "v2")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


LOCK = """\
schema: '2.0'
stages:
  tune@adam:
    cmd: python pipeline/tune.py adam
    params:
      params.yaml:
        model: zilliax
        optimizers.adam:
          class: Adam
          lr: 0.001
        seeds:
        - 0
        tuning:
          trials: 4
  train@adam-1:
    cmd: python pipeline/train.py adam 1
    deps:
    - path: tuning/adam/choice.json
      hash: md5
      md5: DIGEST
      size: 2
    params:
      params.yaml:
        model: zilliax
        training: {epochs: 1, batch_size: 64, threads: 2}
"""
EDITED = {
    "an entry": ("lr: 0.001", "lr: 0.002", r"params.yaml: optimizers.adam was changed since adam was trained"),
    "how all are trained": ("epochs: 1", "epochs: 2", r"params.yaml: training was changed since adam was trained"),
    "tuned anew": ("choice", "{ }", r"tuning/adam/choice.json: was changed since adam was trained"),
}


@pytest.mark.parametrize(("old", "new", "message"), EDITED.values(), ids=EDITED)
def test_record_older_than_edit_is_refused(top, old, new, message):
    """Its weights are those of the revision, and would be called the same."""
    choice = top / "tuning" / "adam" / "choice.json"
    choice.parent.mkdir(parents=True)
    choice.write_text("{}")
    (top / "dvc.lock").write_text(LOCK.replace("DIGEST", compute_md5(choice)))
    folder = top.relative_to(top)
    versus.check_trained(write_record(top, THEN, PARAMS.replace("seeds: [0, 1, 2]", "seeds: [1, 0, 2]")), folder)
    if old == "choice":
        choice.write_text(new)
    config = write_record(top, THEN, PARAMS.replace(old, new))
    with pytest.raises(RecordError, match=f"^{message}: run `dvc repro`$"):
        versus.check_trained(config, folder)
    study = top / "studies" / "x"
    shutil.copytree(top, study, ignore=shutil.ignore_patterns("studies", ".git"))
    with pytest.raises(RecordError, match=rf"^studies/x/{message}: run `dvc repro` in studies/x$"):
        versus.check_trained(config, study.relative_to(top))
