"""One optimizer against a study's record: it alone is trained, and what was recorded otherwise is named."""

import contextlib
import json
import re
import shutil
import signal

import pytest
from projects import RESTING, TOP, output, started, until
from ruamel.yaml import YAML

from optlab.config import loader
from optlab.orchestration import versus, versus_pipeline
from optlab.records import Environment
from optlab.system.errors import RecordError

STUDY = """\
# Two optimizers.
model: zilliax
seeds: [10, 11]
data: {dataset: cifar10_sample, train_size: 100, validation_size: 20}
training: {epochs: 1, batch_size: 20, threads: 1, schedule: {name: cosine}}
verdict: {margin: 0.01, looks: [2]}
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
    parts = (folder / "reports" / "comparison.md").read_text().split("\n\n")
    lines = next(part for part in parts if part.startswith("| optimizer")).splitlines()
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def run_versus(project, *words):
    result = project.run_forked("optlab", "versus", *words, "--study", "studies/small")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def list_trained(said):
    """The runs whose epochs a command has printed."""
    return {line.split()[0] for line in said.splitlines() if " epoch 1/1 " in line}


@pytest.fixture(scope="module")
def challenged(studied, tmp_path_factory):
    """A copy of it, after a versus of a user's module, and what that printed."""
    project = studied.copy(tmp_path_factory.mktemp("challenged") / "project")
    project.edit("params.yaml", "optimizers:\n", "optimizers:\n  sign: {class: sign_descent.SignDescent, lr: 0.0003}\n")
    return project, run_versus(project, "custom/sign_descent.py")


COST = r"^versus: {}, less than a minute on this machine \(measured: \d+(\.\d)? steps a second\)$"


def test_versus_trains_only_challenger(studied, challenged):
    project, said = challenged
    study = project.top / "studies" / "small"
    before = read_train_records(studied.top / "studies" / "small")
    folder = project.top / "studies" / "small-sign"
    assert re.search(COST.format("4 trials and 2 runs"), said, re.MULTILINE)
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
    assert text.startswith("**sign reaches ") and "recorded otherwise" not in text
    assert "attempt 1 on these seeds (tested at 1/2 of 5 %)" in text
    pairs = next(part for part in text.split("\n\n") if part.startswith("| pair"))
    assert [line.split("|")[1].strip() for line in pairs.splitlines()[2:]] == [
        f"sign − {name}" for name in rows if name != "sign"
    ]


def read_attempts(project):
    """The lines of the list of attempts: challenger and seeds of each."""
    text = (project.top / "studies" / "small" / "attempts.yaml").read_text()
    return re.findall(r"^- \{challenger: (\w+), .*seeds: \[(.*)\]\}$", text, re.MULTILINE)


def read_command(folder):
    return YAML(typ="safe").load(folder / "dvc.yaml")["stages"]["compare"]["cmd"]


def collect(folder):
    """The comparison of a versus."""
    with contextlib.chdir(folder.parents[1]):
        own = folder.relative_to(folder.parents[1])
        return versus.collect_comparison(loader.load(own / "params.yaml"), own)


def test_versus_counts_edits_as_attempts(challenged, tmp_path):
    project = challenged[0].copy(tmp_path / "project")
    folder, study = (project.top / "studies" / name for name in ("small-sign", "small"))
    assert read_attempts(project) == [("sign", "10, 11")] and read_command(folder).endswith(" ../small 1")
    assert project.run("dvc", "status", "-q", folder="studies/small").returncode == 0

    project.edit("custom/sign_descent.py", "import torch", "import torch  # edited")
    said = run_versus(project, "sign")
    assert list_trained(said) == {"sign-10", "sign-11"}
    assert re.search(COST.format("4 trials and 2 runs"), said, re.MULTILINE)
    assert read_attempts(project) == [("sign", "10, 11")] * 2 and read_command(folder).endswith(" ../small 2")
    assert collect(folder).attempt == 2

    # A later attempt leaves the verdict as it is.
    with (study / "attempts.yaml").open("a") as file:
        file.write('- {challenger: x, digest: "0123456789abcdef", seeds: [10, 11]}\n')
    assert collect(folder).attempt == 2
    assert project.run("dvc", "status", "-q", folder="studies/small-sign").returncode == 0

    # Fresh seeds have searches of their own; the study's record stays, and this is the first attempt on these seeds.
    record = read_train_records(study)
    said = run_versus(project, "sign", "--fresh-seeds")
    assert list_trained(said) == {"sign-12", "sign-13"}
    assert re.search(COST.format("4 trials and 2 runs"), said, re.MULTILINE)
    assert read_train_records(study) == record
    assert YAML(typ="safe").load(folder / "params.yaml")["seeds"] == [12, 13]
    compared = collect(folder)
    runs = [run.files.id for run in compared.runs]
    assert runs == ["sign-12", "sign-13", "sgd-10", "sgd-11", "adam-10", "adam-11"]
    assert compared.attempt == 1 and read_attempts(project)[2:] == [("x", "10, 11"), ("sign", "12, 13")]
    assert "recorded otherwise" not in said

    # A plain repetition keeps them, trains nothing, and is no attempt.
    kept = [study / "attempts.yaml", *(folder / name for name in ("params.yaml", "dvc.yaml", "dvc.lock"))]
    before = [path.read_bytes() for path in kept]
    said = run_versus(project, "sign")
    assert "versus: " not in said and list_trained(said) == set()
    assert [path.read_bytes() for path in kept] == before


def test_attempt_counts_wherever_it_is_compared(challenged, tmp_path):
    """By the stage alone, too; and a list in which another attempt has come before it has another number."""
    project = challenged[0].copy(tmp_path / "project")
    path = project.top / "studies" / "small" / "attempts.yaml"
    text = path.read_text()
    path.unlink()
    result = project.run_forked("pipeline/versus.py", "../small", "1", folder="studies/small-sign")
    assert result.returncode == 0, result.stderr
    assert path.read_text() == text

    path.write_text('- {challenger: x, digest: "0123456789abcdef", seeds: [11, 12]}\n' + text)
    for words in (["optlab", "show"], ["pipeline/versus.py", "../small", "1"]):
        result = project.run_forked(*words, folder="studies/small-sign")
        assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
        assert "studies/small-sign/dvc.yaml: is of attempt 1, but sign as it is now is attempt 2 by" in result.stderr
    run_versus(project, "sign")
    assert collect(project.top / "studies" / "small-sign").attempt == 2


RESTED = {"REST_S": "1.5"}  # seconds before each step


def test_interrupted_versus_counts_once_it_trains(studied, tmp_path):
    project = studied.copy(tmp_path / "project")
    (project.top / "custom" / "resting.py").write_text(RESTING)
    project.edit("params.yaml", "optimizers:\n", "optimizers:\n  resting: {class: resting.Resting}\n")
    attempts = project.top / "studies" / "small" / "attempts.yaml"
    words = ["optlab", "versus", "resting", "--study", "studies/small", "--again"]
    with started(project, *words, forked=True, **RESTED) as process:
        until(process, attempts.exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(240) == 130
    assert read_attempts(project) == [("resting", "10, 11")]
    folder = project.top / "studies" / "small-resting"
    assert not read_train_records(folder)
    said = output(project)
    assert re.search(COST.format("2 runs"), said, re.MULTILINE)
    kept = "studies/small-resting: the trials and runs that are complete are kept"
    assert f"{kept}: `optlab versus resting --study studies/small --again` does the rest\n" in said


SEEDS = {
    "the next ones": ({}, [], [], [13, 14]),
    "none of an attempt": ({}, [14, 15, 16], [], [13, 17]),
    "none of its own": ({}, [], [13, 14], [15, 16]),
    "from the beginning again": ({"seeds": [2**31 - 1, 0]}, [], [], [1, 2]),
}


@pytest.mark.parametrize(("changes", "attempted", "own", "fresh"), SEEDS.values(), ids=SEEDS)
def test_fresh_seeds_are_unseen(small_config, tmp_path, changes, attempted, own, fresh):
    adam = {"adam": {"class": "Adam", "lr": {"log": [0.001, 0.1]}}}
    config = small_config(**{"seeds": [10, 12], "optimizers": adam} | changes)
    if attempted:
        line = f'- {{challenger: x, digest: "0123456789abcdef", seeds: {attempted}}}\n'
        (tmp_path / "attempts.yaml").write_text(line)
    earlier = config.model_copy(update={"seeds": own})
    assert versus_pipeline._find_fresh_seeds(config, tmp_path, earlier) == fresh


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
    # Its search was repeated with its range.
    entry = YAML(typ="safe").load(STUDY)["optimizers"]["sgd"]
    assert YAML(typ="safe").load(folder / "params.yaml")["optimizers"]["sgd"] == entry
    for seed in (10, 11):
        first, again = ((each / "tuning" / f"sgd-{seed}" / "choice.json").read_bytes() for each in (study, folder))
        assert first == again
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


def test_search_for_all_seeds_serves_fresh_ones(studied, tmp_path):
    """Of an optimizer that is trained again with fresh seeds: the study has chosen its values, and none has its own."""
    project = studied.copy(tmp_path / "project")
    study, folder = (project.top / "studies" / name for name in ("small", "small-momentum"))
    project.edit("studies/small/params.yaml", "seed: 3}", "seed: 3, per_seed: false}")
    assert project.run_forked("optlab", "repro", folder="studies/small").returncode == 0
    path = study / "runs" / "sgd-11" / "conditions.json"
    path.write_text(path.read_text().replace('"torch": "2.', '"torch": "1.'))
    said = run_versus(project, "momentum", "--again", "--fresh-seeds")
    assert list_trained(said) == {"momentum-12", "momentum-13", "sgd-12", "sgd-13"}
    choice = json.loads((study / "tuning" / "sgd-10" / "choice.json").read_text())
    assert YAML(typ="safe").load(folder / "params.yaml")["optimizers"]["sgd"] == choice["entry"]
    assert [run.files.id for run in collect(folder).runs if run.files.optimizer == "sgd"] == ["sgd-12", "sgd-13"]
    assert {name: row["tuned"] for name, row in read_comparison_table(folder).items()} == {
        "momentum": "1 trial", "sgd": "1 trial", "adam": "not tuned"
    }  # fmt: skip


def test_entry_that_runs_share_is_parsed_once(tmp_path, monkeypatch):
    """One search for all seeds has one entry in the records of earlier versions, of a hundred lines."""
    (tmp_path / "params.yaml").write_text(STUDY)
    entry = "  tune@{0}:\n    params:\n      params.yaml:\n        model: zilliax\n        optimizers.{0}: {1}\n"
    values = {"sgd": "{class: SGD, lr: {log: [0.001, 1.0]}}", "adam": "{class: Adam, lr: 0.001}"}
    entries = [entry.format(*each) for each in values.items()]
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages:\n" + "".join(entries))
    for name in values:
        for path in (f"tuning/{name}/choice", f"tuning/{name}/trials",
                     *(f"runs/{name}-{seed}/{file}" for seed in (10, 11) for file in ("train", "test"))):  # fmt: skip
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{path}.json").touch()
    versus._parse_entry.cache_clear()
    parsers = []
    monkeypatch.setattr(versus, "YAML", lambda **options: parsers.append(YAML(**options)) or parsers[-1])
    assert list(versus.check_study(tmp_path).optimizers) == ["sgd", "adam"]
    assert len(parsers) == len(values)
    (tmp_path / "params.yaml").write_text(STUDY.replace("[0.001, 1.0]", "[0.001, 2.0]"))
    with pytest.raises(RecordError, match=r"params.yaml: optimizers.sgd is another than in its record"):
        versus.check_study(tmp_path)


def render_versus(folder):
    """What the terminal shows of a versus."""
    from optlab.analysis import tables

    return tables.render_text(collect(folder)).strip()


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
    "two, and of its fallback": (
        {"class": "x.Muon", "lr": 0.02, "adamw_lr": 0.001, "fallback": {"class": "AdamW", "lr": 0.001}},
        {"class": "x.Muon", "lr": {"log": [0.002, 2.0]}, "adamw_lr": {"log": [0.0001, 0.1]},
         "default": {"lr": 0.02, "adamw_lr": 0.001},
         "fallback": {"class": "AdamW", "lr": {"log": [0.0001, 0.1]}, "default": {"lr": 0.001}}}),
    "a range already": ({"class": "SGD", "lr": 0.01, "momentum": {"choice": [0.0, 0.9]}}, None),
    "none": ({"class": "x.Prodigy"}, None),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "ranged"), ENTRIES.values(), ids=ENTRIES)
def test_challenger_entry_gets_learning_rate_ranges(entry, ranged):
    assert versus_pipeline.add_lr_ranges(entry) == (ranged or entry)


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


def create_folder_of_other_params(top):
    header = "# momentum against what studies/small has on record. `optlab versus` writes this: edit a/params.yaml.\n"
    (top / "studies" / "small-momentum").mkdir()
    (top / "studies" / "small-momentum" / "params.yaml").write_text(header + STUDY)


def change_stage_command(top):
    path = top / "studies" / "small" / "dvc.yaml"
    path.write_text(path.read_text().replace("pipeline/compare.py", "pipeline/another.py"))


def damage_attempts(top):
    (top / "studies" / "small" / "attempts.yaml").write_text("- {challenger: x}\n")


BAD = {
    "a name of the study's": (["adam"], None, "adam is one of the optimizers of studies/small"),
    "misspelt": (["liom"], None, "did you mean lion?"),
    "no such module": (["custom/none.py"], None, "custom/none.py: no such module in custom/"),
    "a module without an entry": (["custom/sign_descent.py"], None, "no entry has a class of custom/sign_descent.py"),
    "the top": (["momentum", "--study", "."], None, ".: no study of this repository in a folder of its own"),
    "no study": (["momentum", "--study", "studies/none"], None, "studies/none: no study of this repository"),
    "elsewhere": (["momentum", "--study", "../small"], None, "../small: no study of this repository"),
    "a folder that is none of ours": (["momentum"], create_foreign_folder, "studies/small-momentum: is there already"),
    "a folder of other entries": (
        ["momentum"],
        create_folder_of_other_params,
        "studies/small-momentum: belongs to the entries of a/params.yaml: run the command in the folder of that file",
    ),
    "other parameters": (["momentum"], change_epochs, "studies/small/params.yaml: training is another than in its"),
    "another range": (["momentum"], change_range, "studies/small/params.yaml: optimizers.sgd is another than in its"),
    "an optimizer too few": (["momentum"], add_optimizer, "studies/small: has no record of lion-10 yet"),
    "a run too few": (["momentum"], delete_run_result, "studies/small/runs/adam-11/test.json: is missing"),
    "another stage": (["momentum"], change_stage_command, "studies/small/dvc.yaml: its stage `compare` is not as in"),
    "damaged attempts": (
        ["momentum"],
        damage_attempts,
        "studies/small/attempts.yaml: attempt 1: damaged (digest: Field",
    ),
}


@pytest.mark.parametrize(("words", "change", "said"), BAD.values(), ids=BAD)
def test_invalid_versus_input_changes_nothing(studied, words, change, said):
    study_folder = studied.top / "studies" / "small"
    kept = read_files(study_folder)
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
        (study_folder / "attempts.yaml").unlink(missing_ok=True)
        for path, content in kept.items():
            path.write_bytes(content)
        shutil.rmtree(studied.top / "studies" / "small-momentum", ignore_errors=True)
