"""One optimizer against a study's record: it alone is trained, and what was recorded otherwise is named."""

import contextlib
import json
import re
import shutil

import pytest
from projects import TOP
from ruamel.yaml import YAML

from optlab.orchestration import versus, versus_pipeline
from optlab.records import Environment

STUDY = """\
# Two optimizers.
model: zilliax
seeds: [10, 11]
data: {dataset: cifar10_sample, train_size: 100, validation_size: 20}
training: {epochs: 1, batch_size: 20, threads: 1, schedule: {name: cosine}}
verdict: {margin: 0.01}
tuning: {trials: 1, halving: 1, seed: 3}
optimizers:
  sgd: {class: SGD, lr: {log: [0.001, 1.0]}}
  adam: {class: Adam, lr: 0.001}
"""


@pytest.fixture(scope="module")
def studied(reproduced, tmp_path_factory):
    """A project with a study of two optimizers on record."""
    project = reproduced[0].copy(tmp_path_factory.mktemp("studied") / "project")
    study = project.top / "studies" / "small"
    study.mkdir(parents=True)
    (study / "params.yaml").write_text(STUDY)
    shutil.copy(TOP / "studies" / "optimizers" / "dvc.yaml", study)
    result = project.run_forked("optlab", "repro", folder="studies/small")
    assert result.returncode == 0, result.stderr
    return project


def read_train_records(folder):
    """Path → content of what the runs left."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("train.json")}


def read_comparison_table(folder):
    """Optimizer → its row of comparison.md."""
    lines = (folder / "reports" / "comparison.md").read_text().split("\n\n")[1].splitlines()
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def test_versus_trains_only_challenger(studied, tmp_path):
    project = studied.copy(tmp_path / "project")
    study = project.top / "studies" / "small"
    before = read_train_records(study)
    project.edit("params.yaml", "optimizers:\n", "optimizers:\n  sign: {class: sign_descent.SignDescent, lr: 0.0003}\n")

    result = project.run_forked("optlab", "versus", "custom/sign_descent.py", "--study", "studies/small")
    assert result.returncode == 0, result.stderr
    folder = project.top / "studies" / "small-sign"
    assert sorted(path.parent.name for path in read_train_records(folder)) == ["sign-10", "sign-11"]
    assert read_train_records(study) == before
    params = YAML(typ="safe").load(folder / "params.yaml")
    assert params.pop("optimizers") == {
        "sign": {"class": "sign_descent.SignDescent", "lr": {"log": [3e-05, 0.03]}, "default": {"lr": 0.0003}}
    }
    assert params == {key: value for key, value in YAML(typ="safe").load(STUDY).items() if key != "optimizers"}
    rows = read_comparison_table(folder)
    assert {name: row["tuned"] for name, row in rows.items()} == {
        "sign": "1 trial", "sgd": "1 trial", "adam": "not tuned"
    }  # fmt: skip
    for name in ("sgd", "adam"):
        own = [json.loads((study / "runs" / f"{name}-{seed}" / "test.json").read_text()) for seed in (10, 11)]
        mean = sum(each["test_accuracy"] for each in own) / 2
        assert rows[name]["test accuracy"].startswith(f"{100 * mean:.2f} ")
    text = (folder / "reports" / "comparison.md").read_text()
    assert text.startswith("sign is ") and "recorded otherwise" not in text
    assert [line.split("|")[1].strip() for line in text.split("\n\n")[2].splitlines()[2:]] == [
        f"sign − {name}" for name in rows if name != "sign"
    ]


def test_versus_names_and_retrains_differing_environments(studied, tmp_path):
    """As if adam had been recorded with another torch, and sgd by other code."""
    project = studied.copy(tmp_path / "project")
    study = project.top / "studies" / "small"
    for seed in (10, 11):
        path = study / "runs" / f"adam-{seed}" / "conditions.json"
        path.write_text(path.read_text().replace('"torch": "2.', '"torch": "1.'))
    lock = YAML()
    content = lock.load(study / "dvc.lock")
    deps = content["stages"]["train@sgd-11"]["deps"]
    next(each for each in deps if each["path"] == "src/optlab/training")["md5"] = "0" * 32 + ".dir"
    lock.dump(content, study / "dvc.lock")
    result = project.run_forked("optlab", "versus", "momentum", "--study", "studies/small")
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert re.search(
        r"adam \(2 runs\) was recorded otherwise than the first run of momentum, .*: torch 1\S*, not 2\.", said
    )
    assert re.search(
        r"sgd \(1 run\) was recorded otherwise .*: src/optlab/training has changed since: `optlab versus", said
    )

    result = project.run_forked("optlab", "versus", "momentum", "--study", "studies/small", "--again")
    assert result.returncode == 0, result.stderr
    folder = project.top / "studies" / "small-momentum"
    trained = {path.parent.name for path in read_train_records(folder)}
    assert trained == {f"{name}-{seed}" for name in ("momentum", "sgd", "adam") for seed in (10, 11)}
    text = (folder / "reports" / "comparison.md").read_text()
    assert "recorded otherwise" not in text
    # The same values, seeds and code: the same bytes.
    assert read_train_records(folder).items() >= read_train_records(study).items()
    chosen = json.loads((study / "tuning" / "sgd" / "choice.json").read_text())["studies"][0]["entry"]
    assert YAML(typ="safe").load(folder / "params.yaml")["optimizers"]["sgd"]["lr"] == chosen["lr"]
    assert read_comparison_table(folder)["sgd"]["tuned"] == "1 trial"

    # One that was trained here under other conditions than these is trained once more.
    path = folder / "runs" / "adam-11" / "conditions.json"
    path.write_text(path.read_text().replace('"torch": "2.', '"torch": "1.'))
    result = project.run_forked("optlab", "versus", "momentum", "--study", "studies/small", "--again")
    assert result.returncode == 0, result.stderr
    assert '"torch": "2.' in path.read_text()
    assert {line.split()[0] for line in result.stdout.splitlines() if " epoch 1/1 " in line} == {"adam-10", "adam-11"}

    # A plain repetition keeps them, and trains nothing.
    result = project.run_forked("optlab", "versus", "momentum", "--study", "studies/small")
    assert result.returncode == 0 and "epoch 1/1" not in result.stdout
    assert {path.parent.name for path in read_train_records(folder)} == trained
    shown = project.run_forked("optlab", "show", folder="studies/small-momentum")
    report = "Report: studies/small-momentum/reports/report.html"
    assert shown.returncode == 0 and shown.stdout.strip() == f"{render_versus(folder)}\n{report}"


def render_versus(folder):
    """What the terminal shows of a versus."""
    from optlab.analysis import tables
    from optlab.config import loader
    from optlab.orchestration import versus

    with contextlib.chdir(folder.parents[1]):
        own = folder.relative_to(folder.parents[1])
        return tables.render_text(
            versus.collect_with_study(loader.load(own / "params.yaml"), own, versus.find_study(own))
        ).strip()


def test_environment_difference_describes_study_runs():
    """Whatever the order of the two values as texts is."""
    ours, theirs = (Environment(packages={"torch": version}, weights_sha256="0") for version in ("2.13.0", "2.14.0"))
    assert versus._describe_condition_differences(ours, theirs, False) == ["torch 2.14.0, not 2.13.0"]
    assert versus._describe_condition_differences(theirs, ours, False) == ["torch 2.13.0, not 2.14.0"]
    assert versus._describe_condition_differences(ours, None, False) == ["conditions not recorded, not recorded"]
    assert versus._describe_condition_differences(None, None, False) == ["conditions not recorded of either"]


ENTRIES = {
    "a learning rate": ({"class": "SGD", "lr": 0.01},
                        {"class": "SGD", "lr": {"log": [0.001, 1.0]}, "default": {"lr": 0.01}}),
    "of its base": ({"class": "x.SAM", "rho": 0.1, "base": {"class": "SGD", "lr": 0.1}},
                    {"class": "x.SAM", "rho": 0.1,
                     "base": {"class": "SGD", "lr": {"log": [0.01, 10.0]}, "default": {"lr": 0.1}}}),
    "a range already": ({"class": "SGD", "lr": 0.01, "momentum": {"choice": [0.0, 0.9]}}, None),
    "none": ({"class": "x.Prodigy"}, None),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "ranged"), ENTRIES.values(), ids=ENTRIES)
def test_challenger_entry_gets_learning_rate_range(entry, ranged):
    assert versus_pipeline._add_lr_range(entry) == (ranged or entry)


def read_files(folder):
    """Path → content of everything that git could see."""
    own = (path for path in folder.rglob("*") if path.is_file() and ".optlab" not in path.parts)
    return {path: path.read_bytes() for path in own if "__pycache__" not in path.parts}


def change_epochs(top):
    (top / "studies" / "small" / "params.yaml").write_text(STUDY.replace("epochs: 1", "epochs: 2"))


def change_range(top):
    (top / "studies" / "small" / "params.yaml").write_text(STUDY.replace("[0.001, 1.0]", "[0.001, 2.0]"))


def add_optimizer(top):
    (top / "studies" / "small" / "params.yaml").write_text(STUDY + "  lion: {class: pytorch_optimizer.Lion}\n")


def delete_run_result(top):
    (top / "studies" / "small" / "runs" / "adam-11" / "test.json").unlink()


def create_foreign_folder(top):
    (top / "studies" / "small-momentum").mkdir()
    (top / "studies" / "small-momentum" / "params.yaml").write_text(STUDY)


def change_stage_command(top):
    path = top / "studies" / "small" / "dvc.yaml"
    path.write_text(path.read_text().replace("pipeline/compare.py", "pipeline/another.py"))


def use_several_studies(top):
    path = top / "studies" / "small" / "params.yaml"
    path.write_text(path.read_text().replace("seed: 3", "seed: 3, studies: 2"))
    lock = top / "studies" / "small" / "dvc.lock"
    lock.write_text(lock.read_text().replace("          seed: 3\n", "          seed: 3\n          studies: 2\n"))


BAD = {
    "a name of the study's": (["adam"], None, "adam is one of the optimizers of studies/small"),
    "misspelt": (["liom"], None, "did you mean lion?"),
    "no such module": (["custom/none.py"], None, "custom/none.py: no such module in custom/"),
    "a module without an entry": (["custom/sign_descent.py"], None, "no entry has a class of custom/sign_descent.py"),
    "the top": (["momentum", "--study", "."], None, ".: no study of this repository in a folder of its own"),
    "no study": (["momentum", "--study", "studies/none"], None, "studies/none: no study of this repository"),
    "elsewhere": (["momentum", "--study", "../small"], None, "../small: no study of this repository"),
    "a folder that is none of ours": (["momentum"], create_foreign_folder, "studies/small-momentum: is there already"),
    "other parameters": (["momentum"], change_epochs, "studies/small/params.yaml: training is another than in its"),
    "another range": (["momentum"], change_range, "studies/small/params.yaml: optimizers.sgd is another than in its"),
    "an optimizer too few": (["momentum"], add_optimizer, "studies/small: has no record of lion yet"),
    "a run too few": (["momentum"], delete_run_result, "studies/small/runs/adam-11/test.json: is missing"),
    "another stage": (["momentum"], change_stage_command, "studies/small/dvc.yaml: its stage `compare` is not as in"),
    "several tunings": (["momentum", "--again"], use_several_studies, "studies/small: has several tunings of each"),
}


@pytest.mark.parametrize(("words", "change", "said"), BAD.values(), ids=BAD)
def test_invalid_versus_input_changes_nothing(studied, words, change, said):
    study = studied.top / "studies" / "small"
    kept = read_files(study)
    try:
        if change:
            change(studied.top)
        before = read_files(studied.top)
        study = [] if "--study" in words else ["--study", "studies/small"]
        result = studied.run_forked("optlab", "versus", *words, *study)
        assert result.returncode == 1
        assert result.stderr.startswith("error: ") and said in result.stderr and len(result.stderr.splitlines()) == 1
        assert read_files(studied.top) == before
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        shutil.rmtree(studied.top / "studies" / "small-momentum", ignore_errors=True)
