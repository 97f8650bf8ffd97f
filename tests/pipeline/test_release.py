"""Release a comparison, go on, and reproduce it from its tag: the verdict, and what must not pass."""

import contextlib
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import projects
import psutil
import pytest
from projects import commit, list_started_stages

from optlab.environment import detect_onednn_isa


@pytest.fixture(scope="module")
def released(reproduced, tmp_path_factory):
    """A project with the tag v1, and another comparison since."""
    project = reproduced[0].copy(tmp_path_factory.mktemp("released") / "project")
    result = project.run_forked("optlab", "release", "v1")
    assert result.returncode == 0, result.stderr
    assert re.search(r"2 of 2 runs marked in MLflow", result.stdout)
    project.edit("params.yaml", "lr: 0.001", "lr: 0.002")
    result = project.repro()
    assert result.returncode == 0, result.stderr
    commit(project, "another comparison")
    return project


@pytest.fixture
def project(released, tmp_path):
    return released.copy(tmp_path / "project")


def state(project):
    """What a reproduction must leave as it was."""
    cache = sorted(path.name for path in (project.top / ".dvc" / "cache").rglob("*") if path.is_file())
    asked = (["status", "--short"], ["worktree", "list"], ["branch"])
    return [(project.top / "dvc.lock").read_bytes(), cache, *(project.run("git", *words).stdout for words in asked)]


def reproduce(project, *words, **options):
    before = state(project)
    result = project.run_forked("optlab", "reproduce", *words, "--json", **options)
    assert state(project) == before
    return result, json.loads(result.stdout) if result.stdout else None


def test_release_tag_contains_table_and_record(released):
    message = released.run("git", "tag", "-l", "--format=%(contents)", "v1").stdout
    assert re.search(r"adam +1 +completed +\d+\.\d\d %", message)
    files = released.run("git", "ls-tree", "-r", "--name-only", "v1").stdout.split()
    assert {
        "params.yaml",
        "dvc.lock",
        "constraints.txt",
        "runs/adam-0/train.json",
        "runs/adam-0/conditions.json",
    } <= set(files)


def test_release_is_compared_with_current_record(released):
    result = released.run_forked("optlab", "compare", "v1")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^sgd +1 .* the same weights$", result.stdout, re.MULTILINE)
    assert re.search(r"^adam +1 .* 1 seed in common, the first look is at 3$", result.stdout, re.MULTILINE)
    assert "params.yaml since v1: optimizers.adam.lr 0.001 → 0.002\n" in result.stdout
    assert "other conditions" not in result.stdout
    unknown = released.run_forked("optlab", "compare", "v1", "v0")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "error: v0: no such tag, branch or commit: `git tag` lists the tags\n"


def test_reverted_params_change_can_be_released(project):
    """The weights come from DVC's run cache, and their conditions from where they were kept."""
    conditions = project.top / "runs" / "adam-0" / "conditions.json"
    found = [conditions.read_bytes()]
    parallel = functools.partial(project.run_forked, "optlab", "repro")
    for number, repro in enumerate([project.repro, parallel, project.repro]):
        old, new = ("lr: 0.002", "lr: 0.004") if number % 2 == 0 else ("lr: 0.004", "lr: 0.002")
        project.edit("params.yaml", old, new)
        result = repro()
        assert result.returncode == 0, result.stderr
        assert ("train@adam-0" in list_started_stages(result)) is (number == 0)
        found.append(conditions.read_bytes())
    assert found[0] != found[1] and found[2:] == found[:2]
    result = project.run_forked("optlab", "release", "v2")
    assert result.returncode == 0, result.stderr


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_release_keeps_table_in_ascii_locale(project):
    """Git has the table as it is, and the terminal reads it in ASCII."""
    result = project.run("optlab", "release", "v2", **ASCII)
    assert result.returncode == 0, result.stderr
    assert "─" in project.run("git", "tag", "-l", "--format=%(contents)", "v2").stdout
    result = project.run("optlab", "show", **ASCII)
    assert (result.returncode, result.stdout.isascii()) == (0, True), result.stderr


RUNS = """
import json

import mlflow


def main():
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("optlab-reproductions")
    runs = client.search_runs([experiment.experiment_id])
    originals = [client.get_run(run.data.tags["reproduces.mlflow_run"]) for run in runs]
    print(json.dumps([[run.data.tags["verdict"], run.data.metrics["identical"]] for run in runs]))
    print(json.dumps([[run.info.run_name, run.data.tags["release.v1"]] for run in originals]))
"""


def test_reproduced_release_is_identical(project, tmp_path):
    """Other parameters and other code are in the working tree; the tag's own are what runs.

    In MLflow each is a run of its own, in an experiment of its own, that names the original.
    """
    project.edit("src/optlab/data/cifar10.py", "[seed, epoch]", "[seed, epoch, 1]")
    result, verdicts = reproduce(project, "v1", forced=True)  # its stages are forked if their code is this repository's
    assert result.returncode == 0, result.stderr
    assert [run["verdict"] for run in verdicts["runs"]] == ["identical", "identical"]
    assert all(output["recorded"] == output["reproduced"] for run in verdicts["runs"] for output in run["outputs"])
    project.run("git", "checkout", "-q", "src")
    (tmp_path / "runs.py").write_text(RUNS)
    *_, logged, originals = project.run_forked(str(tmp_path / "runs.py")).stdout.splitlines()
    assert json.loads(logged) == [["identical", 1.0]] * 2
    assert sorted(json.loads(originals)) == [["adam-0", "yes"], ["sgd-0", "yes"]]


def test_reproduction_works_without_cache_or_remote(project):
    shutil.rmtree(project.top / ".dvc" / "cache")
    result = project.run_forked("optlab", "reproduce", "v1", "sgd-0")
    assert result.returncode == 0, result.stderr
    assert re.search(r"sgd-0 +identical +4/4 outputs", result.stdout)
    assert "adam-0" not in result.stdout
    assert not (project.top / ".dvc" / "cache").exists()


def rewrite_tag(project, path, change):
    """Put the tag on a commit in which a file is changed."""
    project.run("git", "stash", "-q")
    assert project.run("git", "checkout", "-q", "v1").returncode == 0
    text = (project.top / path).read_text()
    (project.top / path).write_text(change(text))
    assert (project.top / path).read_text() != text
    commit(project, "tampered")
    assert project.run("git", "tag", "-f", "v1").returncode == 0
    assert project.run("git", "checkout", "-q", "master").returncode == 0


def test_flipped_digest_digit_fails_reproduction(project):
    def flip(lock):
        start = lock.index("md5: ", lock.index("path: models/sgd-0.safetensors")) + 5
        return lock[:start] + ("0" if lock[start] != "0" else "1") + lock[start + 1 :]

    rewrite_tag(project, "dvc.lock", flip)
    result, verdicts = reproduce(project, "v1", "sgd-0")
    assert result.returncode in (1, 3)
    (run,) = verdicts["runs"]
    assert run["verdict"] != "identical"
    assert [output["path"] for output in run["outputs"] if output["recorded"] != output["reproduced"]] == [
        "models/sgd-0.safetensors"
    ]


def test_nondeterministic_loop_fails_reproduction(project):
    """The recorded run drew one order of batches; the tag's code draws another at every call."""
    rewrite_tag(
        project, "src/optlab/data/cifar10.py", lambda code: code.replace("default_rng([seed, epoch])", "default_rng()")
    )
    result, verdicts = reproduce(project, "v1", "adam-0")
    assert result.returncode == 1
    (run,) = verdicts["runs"]
    assert run["verdict"] == "different"
    assert run["first_difference"] == [1, 0]
    assert run["gaps"]["step_loss"]["absolute"] > 0
    assert run["gaps"]["weights"]["relative"] > 0  # the recorded weights are in the cache


def test_unwritten_output_fails_reproduction(project):
    """git checks the record out with the code; a stage that leaves a file of it untouched has not reproduced it."""
    rewrite_tag(project, "pipeline/evaluate.py", lambda code: code.replace("eval_record.write(files.test)", "pass"))
    result, verdicts = reproduce(project, "v1", "sgd-0")
    assert result.returncode == 2
    (run,) = verdicts["runs"]
    assert run["verdict"] == "not run"
    assert "test.json" in run["reason"]


def test_recorded_environment_is_replayed_by_default(project):
    """Recorded with the instruction set held down, replayed so: the same. Under this machine's own: not."""
    avx512 = (detect_onednn_isa() or "").startswith("AVX512")
    names = ("avx2", "AVX2") if avx512 else ("default", "SSE41")
    low = dict(zip(("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"), names, strict=True))
    project.run("git", "checkout", "-q", "v1")
    assert project.repro("-f", "-s", "train@adam-0", "evaluate@adam-0", **low).returncode == 0
    commit(project, "recorded on another machine")
    project.run("git", "tag", "low")
    project.run("git", "checkout", "-q", "master")
    result, verdicts = reproduce(project, "low", "adam-0")
    assert result.returncode == 0, (result.stderr, verdicts)
    result, verdicts = reproduce(project, "low", "adam-0", "--here")
    assert result.returncode in (1, 3)
    assert verdicts["runs"][0]["verdict"] != "identical"
    assert next(iter(verdicts["runs"][0]["conditions"])).startswith("variables.")


def test_reproduction_works_from_remote_alone(project, tmp_path):
    """Pushed with the release, then the cache is lost and the download does not answer."""
    remote, stored = tmp_path / "remote.git", tmp_path / "stored"
    assert project.run("git", "init", "-q", "--bare", str(remote)).returncode == 0
    assert project.run("git", "remote", "add", "origin", str(remote)).returncode == 0
    assert project.run("dvc", "remote", "add", "--local", "-d", "storage", str(stored)).returncode == 0
    result = project.run_forked("optlab", "release", "v2", "--push")
    assert result.returncode == 0, result.stderr
    assert "v2" in project.run("git", "ls-remote", "--tags", "origin").stdout
    assert "pushed the outputs to the DVC remote" in result.stdout
    shutil.rmtree(project.top / ".dvc" / "cache")
    result, verdicts = reproduce(project, "v2", "sgd-0", CIFAR10_ARCHIVE="/there/is/no/such.tar.gz")
    assert result.returncode == 0, (result.stderr, verdicts)
    assert not (project.top / ".dvc" / "cache").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_interrupted_reproduction_leaves_nothing_behind(project, tmp_path, number):
    """Killed, it leaves its checkout, but nothing at work there."""
    before = state(project)
    folder = tmp_path / "temporary"
    folder.mkdir()
    rewrite_tag(project, "params.yaml", lambda text: text.replace("epochs: 2", "epochs: 5000"))
    environment = project.environment | {"TMPDIR": str(folder)}
    command = [Path(sys.executable).parent / "optlab", "reproduce", "v1", "adam-0"]
    process = subprocess.Popen(command, cwd=project.top, env=environment, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    try:
        projects.until(process, lambda: list(folder.glob("*/tree/.optlab/event_logs/*/events.jsonl")))
        process.send_signal(number)
        output, _ = process.communicate(timeout=240)  # until what it started has closed its output, too
        assert projects.processes_below(folder) == []
    finally:
        process.kill()
        for left in projects.processes_below(folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
    if number == signal.SIGINT:
        assert process.returncode == 130, output
        assert list(folder.glob("optlab-*")) == []
        assert state(project) == before


REFUSED = {
    "tag exists": (lambda project: None, "v1", "the tag exists"),
    "bad name": (lambda project: None, "a b", "not a valid name"),
    "other file changed": (lambda project: project.edit("README.md", "optlab", "Optlab"), "v2", "README.md is changed"),
    "conditions of another training": (
        lambda project: (
            project.edit("runs/adam-0/conditions.json", '"weights_sha256": "', '"weights_sha256": "0'),
            project.run("dvc", "commit", "-f", "compare"),
        ),
        "v2",
        "run `dvc repro -f -s train@adam-0`",
    ),
    "a module that git ignores": (
        lambda project: (
            (project.top / "custom" / "hidden.py").write_text("from torch.optim import SGD\n"),
            (project.top / ".git" / "info" / "exclude").write_text("hidden.py\n"),
            project.edit("params.yaml", "class: SGD", "class: hidden.SGD"),
        ),
        "v2",
        "custom/hidden.py: git ignores it, and the runs use it: `git add --force custom/hidden.py`",
    ),
    "stale": (lambda project: project.edit("params.yaml", "lr: 0.002", "lr: 0.003"), "v2", "is out of date"),
}


@pytest.mark.parametrize(("change", "tag", "phrase"), REFUSED.values(), ids=REFUSED)
def test_invalid_release_is_rejected(project, change, tag, phrase):
    change(project)
    before = project.run("git", "rev-parse", "HEAD").stdout
    result = project.run_forked("optlab", "release", tag)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert phrase in line
    assert project.run("git", "rev-parse", "HEAD").stdout == before
    assert "v2" not in project.run("git", "tag").stdout


@pytest.mark.parametrize(("words", "phrase"), [(["v9"], "no such tag"), (["v1", "adam-7"], "has no run adam-7")])
def test_unrunnable_reproduction_exits_with_status_2(released, words, phrase):
    result = released.run_forked("optlab", "reproduce", *words)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert phrase in line
