"""The present comparison beside that of a git revision, from records written by hand."""

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
    """Numbers of t tests by hand: of adam's differences (1, 3.1, -1) points the mean is 1.03, the error 1.18."""
    config = write_record(top, {"sgd": [0.4, 0.412, 0.4], "adam": [0.53, 0.531, 0.53]})
    assert report_lines(config, top, "v1") == [
        "Test accuracy now less that at the revision, paired by seed; ± 95 %, for 2 differences at once.",
        "optimizer n v1 now now − v1 p wins verdict",
        "sgd 3 30.33 ± 1.43 % 40.40 ± 1.72 % 10.07 ± 0.41 points 8.8e-05 3 of 3 now better",
        "adam 3 52.00 ± 4.97 % 53.03 ± 0.14 % 1.03 ± 7.35 points 0.95 2 of 3 cannot be told apart",
    ]


def test_revision_diff_reports_worse_result(top):
    config = write_record(top, {"sgd": [0.2, 0.21, 0.201], "adam": THEN["adam"]})
    title, *_, sgd, adam = report_lines(config, top, "v1")
    assert title.endswith("; ± 95 %, for 1 difference.")
    assert sgd == "sgd 3 30.33 ± 1.43 % 20.37 ± 1.37 % −9.97 ± 0.14 points 1.1e-05 0 of 3 v1 better"
    assert adam == "adam 3 52.00 ± 4.97 % 52.00 ± 4.97 % – – – the same weights"


def test_revision_diff_lists_params_and_environment_changes(top):
    params = PARAMS.replace("lr: 0.001", "lr: 0.002").replace("epochs: 1", "epochs: 2").replace("  sgd:", "  other:")
    params = params.replace("model", "verdict: {margin: 0.1}\nmodel").replace("[0, 1, 2]", "[2, 1, 3]")
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
    assert lines[0].endswith("for 4 differences at once.")
    assert [line.split()[2] for line in lines if line.startswith("optimizer")] == ["v1", "v2"]
    assert next(line.split("points ")[1] for line in lines if line.startswith("sgd")) == "0.00018 3 of 3 now better"


NONE = {
    "diverged then": ({"adam": [None, 0.5, 0.54]}, {}, "– – – diverged"),
    "diverged now": ({}, {"adam": [0.52, None, 0.6]}, "– – – diverged"),
    "all diverged": ({"adam": [None] * 3}, {"adam": [0.5] * 3}, "adam 0 of 3 – – – – – diverged"),
}


@pytest.mark.parametrize(("then", "now", "ending"), NONE.values(), ids=NONE)
def test_diverged_run_has_no_verdict(top, then, now, ending):
    write_record(top, THEN | then)
    git("commit", "-q", "--allow-empty", "-am", "with a divergence")
    *_, adam = report_lines(write_record(top, THEN | now), top, "HEAD")
    assert adam.startswith(("adam 2 of 3 ", "adam 0 of 3 ")) and adam.endswith(ending)


@pytest.mark.parametrize(("seeds", "said"), [("[2, 3]", "one seed in common"), ("[7, 8]", "no seed in common")])
def test_verdict_needs_two_common_seeds(top, seeds, said):
    config = write_record(top, {"sgd": [0.4, 0.5], "adam": [0.4, 0.5]}, PARAMS.replace("[0, 1, 2]", seeds))
    lines = report_lines(config, top, "v1")
    assert lines[0] == "Test accuracy now less that at the revision, paired by seed: there is no verdict."
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
        lambda top: (top / "params.yaml").write_text(PARAMS.replace("lr: 0.001", "lr: x")), "v2:params.yaml:7: "),
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
