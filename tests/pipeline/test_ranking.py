"""A record of a ranking: made by its protocol, verified, refused when it is forged, and placed among the references."""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from projects import TOP
from ruamel.yaml import YAML

from optlab.ranking import module_scan, protocol, submission, table, verification
from optlab.ranking.protocol import Ranking
from optlab.reproduce import rerun
from optlab.system.errors import ConfigError

PARAMS = """\
model: zilliax
data: {dataset: cifar10_sample, train_size: 100, validation_size: 20}
training: {epochs: 1, batch_size: 20, threads: 1, validations_per_epoch: 5, schedule: {name: cosine}}
verdict: {margin: 0.01, looks: [2], target: 0.1}
tuning: {trials: 2, halving: 1, per_seed: true}
"""
STUDY = f"""\
# Two optimizers.
{PARAMS}
seeds: [10, 11]
optimizers:
  sgd: {{class: SGD, lr: {{log: [0.001, 1.0]}}, default: {{lr: 0.01}}}}
  adam: {{class: Adam, lr: {{log: [0.0001, 0.1]}}, default: {{lr: 0.001}}}}
"""


def write_protocol(top, code):
    lines = "".join(f"  {line}\n" for line in PARAMS.splitlines())
    text = f"version: 1\nstudy: studies/small\nreplicates: 2\ncode: ['{code}']\nparams:\n{lines}"
    (top / "ranking").mkdir(exist_ok=True)
    (top / "ranking" / "protocol.yaml").write_text(text)


def git(project, *words):
    result = project.run("git", *words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def commit(project):
    git(project, "add", "-A")
    git(project, "commit", "-qm", "x", "--allow-empty")


@pytest.fixture(scope="module")
def submitted(reproduced, tmp_path_factory):
    """A project with a study, a protocol, and the record of a user's module, committed; and what that printed."""
    project = reproduced[0].copy(tmp_path_factory.mktemp("submitted") / "project")
    for path in project.top.glob("ranking/*/params.yaml"):  # records of the repository's own protocol
        shutil.rmtree(path.parent)
    study = project.top / "studies" / "small"
    study.mkdir(parents=True)
    (study / "params.yaml").write_text(STUDY)
    shutil.copy(TOP / "studies" / "optimizers" / "dvc.yaml", study)
    result = project.run_forked("optlab", "repro", folder="studies/small")
    assert result.returncode == 0, result.stderr
    with contextlib.chdir(project.top):
        code = protocol.compute_code_digest(Path("studies/small"))
    write_protocol(project.top, code)
    project.edit("params.yaml", "optimizers:\n", "optimizers:\n  sign: {class: sign_descent.SignDescent, lr: 0.0003}\n")
    commit(project)
    git(project, "branch", "base")
    result = project.run_forked("optlab", "submit", "custom/sign_descent.py")
    assert result.returncode == 0, result.stdout + result.stderr
    commit(project)
    return project, result.stdout


@pytest.fixture
def record(submitted, tmp_path):
    """A copy of the project, and the folder of the record in it."""
    project = submitted[0].copy(tmp_path / "project")
    return project, project.top / "ranking" / "sign"


def verify(project, *words):
    return project.run_forked("optlab", "verify", "ranking/sign", *words)


def check(project, base=None):
    """Title of each check that refuses the record → why."""
    with contextlib.chdir(project.top):
        loaded = verification.RankingRecord.load(Path("ranking/sign"))
        found = {each.title: each.problem for each in verification.check_files(loaded, base)}
    return {title: problem for title, problem in found.items() if problem}


def test_submitted_record_is_verified_and_placed(submitted, tmp_path):
    project, said = submitted
    folder = project.top / "ranking" / "sign"
    params = YAML(typ="safe").load(folder / "params.yaml")
    assert len(set(params["seeds"])) == 2 and set(params["seeds"]).isdisjoint({10, 11})
    assert sorted(path.name for path in (folder / "runs").iterdir()) == sorted(
        f"sign-{seed}" for seed in params["seeds"]
    )
    assert "ranking/sign: the record is complete: commit all of ranking, then run `optlab verify ranking/sign`" in said
    text = (project.top / "ranking" / "RANKING.md").read_text()
    rows = {line.split(" | ")[1]: line for line in text.splitlines() if line.startswith("| ")}
    assert set(rows) == {"optimizer", "---", "sgd", "adam", "sign"}
    assert "[sign](sign/params.yaml)" in rows["sign"] and "reference" in rows["adam"]
    assert (project.top / "ranking" / "report.html").stat().st_size > 100_000

    clone = project.clone(tmp_path / "clone")  # git has no weights and no data
    result = verify(clone, "--base", "origin/base")
    assert result.returncode == 0, result.stdout + result.stderr
    drawn = re.search(r"^drawn: replicate (\d) of 2, seed (\d+) ", result.stdout, re.MULTILINE)
    assert int(drawn[2]) == params["seeds"][int(drawn[1]) - 1]
    for stage in (f"sign-{drawn[2]}", f"tune@sign-{drawn[2]}"):
        assert re.search(rf"^{stage} +identical ", result.stdout, re.MULTILINE), result.stdout
    assert result.stdout.endswith("ranking/sign: verified\n") and "refused" not in result.stdout


def test_seeds_follow_from_entry_module_and_protocol(submitted, monkeypatch):
    monkeypatch.chdir(submitted[0].top)
    ranking = Ranking.load(Path("ranking"))
    entry = submission.read_entry(Path("ranking/sign"))

    def derive(name="sign", lr=None, of=ranking):
        values = of.make_params(name, entry | ({"lr": lr} if lr else {}))
        return [values["tuning"]["seed"], *values["seeds"]]

    params = YAML(typ="safe").load(Path("ranking/sign/params.yaml"))
    own = derive()
    assert own == [params["tuning"]["seed"], *params["seeds"]]
    stricter = ranking.protocol.model_copy(update={"version": 2})
    drawn = [own, derive("other"), derive(lr={"log": [0.0001, 0.01]}), derive(of=Ranking(ranking.folder, stricter))]
    assert len({tuple(each) for each in drawn}) == 4
    accepted = ranking.protocol.model_copy(update={"code": ["0" * 64]})
    assert derive(of=Ranking(ranking.folder, accepted)) == own
    spec = ranking.check_study().optimizers["sgd"]
    seeds = {tuple(ranking.derive_seeds("x", spec, {"custom/x.py": digest})) for digest in "ab"}
    assert len(seeds) == 2 and all(len(set(each)) == 3 for each in seeds)


def rewrite(path, change):
    """Change a JSON file of the record, in its own format."""
    values = json.loads(path.read_text())
    change(values)
    lines = []
    for key, item in values.items():
        rows = ",\n    ".join(map(json.dumps, item)) if isinstance(item, list) else None
        lines.append(f'  "{key}": ' + (json.dumps(item) if rows is None else f"[\n    {rows}\n  ]"))
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def seal(folder):
    """Write the digests of all files that are there into dvc.lock, as a forger would."""
    text = (folder / "dvc.lock").read_text()
    for path in {each for each in re.findall(r"- path: ((?:runs|tuning)/\S+)\n", text) if (folder / each).exists()}:
        content = (folder / path).read_bytes()
        new = rf"\g<1>md5: {hashlib.md5(content).hexdigest()}\n      size: {len(content)}\n"
        text = re.sub(rf"(- path: {path}\n      hash: md5\n      )md5: \S+\n      size: \d+\n", new, text)
    (folder / "dvc.lock").write_text(text)


def first(folder, kind, name):
    return sorted((folder / kind).glob(f"*/{name}"))[0]


def change_accuracy(folder):
    """One more image is correct, everywhere in test.json."""

    def change(values):
        row = next(index for index, counts in enumerate(values["confusion"]) if counts[index] < 10)
        counts = values["confusion"][row]
        other = next(index for index, count in enumerate(counts) if count and index != row)
        counts[row], counts[other] = counts[row] + 1, counts[other] - 1
        values["test_accuracy"] = sum(each[index] for index, each in enumerate(values["confusion"])) / 100
        values["class_accuracy"][row][1] = counts[row] / 10
        from optlab import records

        mask = records.decode_mask(values["correct"], 100)
        mask[(~mask).nonzero()[0][0]] = True
        values["correct"] = records.encode_mask(mask)

    rewrite(first(folder, "runs", "test.json"), change)


def change_one_accuracy(folder):
    rewrite(first(folder, "runs", "test.json"), lambda values: values.update(test_accuracy=0.99))


def choose_seed(folder):
    params = (folder / "params.yaml").read_text()
    (seed, _) = YAML(typ="safe").load(params)["seeds"]
    for path in [folder / "params.yaml", folder / "dvc.lock"]:
        path.write_text(re.sub(rf"\b{seed}\b", "77", path.read_text()))
    for kind in ("runs", "tuning"):
        (folder / kind / f"sign-{seed}").rename(folder / kind / "sign-77")
    rewrite(
        folder / "tuning" / "sign-77" / "trials.json",
        lambda values: [each.update(search=77) for each in values["trials"]],
    )
    seal(folder)


def leave_out_trial(folder):
    path = first(folder, "tuning", "trials.json")
    rewrite(path, lambda values: values["trials"].pop())
    seal(folder)


def add_trial(folder):
    path = first(folder, "tuning", "trials.json")
    rewrite(path, lambda values: values["trials"].append(values["trials"][-1] | {"index": 2, "key": "0" * 32}))
    seal(folder)


def choose_other_trial(folder):
    path = first(folder, "tuning", "choice.json")
    rewrite(path, lambda values: values["entry"].update(lr=0.00123))
    seal(folder)


def alter_weights(folder):
    rewrite(first(folder, "runs", "train.json"), lambda values: values.update(weights_sha256="0" * 64))
    seal(folder)


def replace_weights_in_lock(folder):
    path = folder / "dvc.lock"
    digest = re.search(r"path: models/\S+\n      hash: md5\n      md5: (\w+)", path.read_text())[1]
    path.write_text(path.read_text().replace(digest, "0" * 32, 1))


def change_split(folder):
    for name in ("params.yaml", "dvc.lock"):
        path = folder / name
        path.write_text(path.read_text().replace("train_size: 100", "train_size: 110"))


def change_data(folder):
    path = folder / "dvc.lock"
    digest = re.search(r"path: data/cifar10\n      hash: md5\n      md5: (\S+)", path.read_text())[1]
    path.write_text(path.read_text().replace(digest, "0" * 32 + ".dir"))


def drop_dependency(folder):
    path = folder / "dvc.yaml"
    path.write_text(re.sub(r"\n *- src/optlab/training(?=\n)", "", path.read_text(), count=1))


def edit_code(folder):
    top = folder.parents[1]
    path = top / "src" / "optlab" / "training" / "loop.py"
    path.write_text(path.read_text() + "\n# faster\n")


def edit_protocol(folder):
    write_protocol(folder.parents[1], "0" * 64)


def read_test_split(folder):
    path = folder.parents[1] / "custom" / "sign_descent.py"
    path.write_text(path.read_text() + '\nIMAGES = open("data/cifar10/test_batch.bin", "rb")\n')


def edit_module_of_others(folder):
    custom = folder.parents[1] / "custom"
    (custom / "sign_descent.py").write_text((custom / "sign_descent.py").read_text() + "\nimport caffe_quick\n")
    (custom / "caffe_quick.py").write_text((custom / "caffe_quick.py").read_text() + "\nN = 3\n")


def in_first(kind, name, change):
    """Return a forgery that changes a JSON file, and its digest in dvc.lock."""

    def forge(folder):
        rewrite(first(folder, kind, name), change)
        seal(folder)

    return forge


def swap_rows(values):
    """Move an image from one class to another: the number of images stays."""
    first_row, second_row = values["confusion"][:2]
    column = next(index for index, count in enumerate(first_row) if count and index > 1)
    first_row[column], second_row[column] = first_row[column] - 1, second_row[column] + 1


def declare_diverged(values):
    values.update(status="diverged", epochs=0, history=[], validations=[], step_losses=[])
    values.update(train_loss=None, validation_loss=None, validation_accuracy=None)


def set_lr(values):
    values["hyperparameters"] = [[key, "0.5" if key == "lr" else text] for key, text in values["hyperparameters"]]


TRAINING = {
    "a validation moved": lambda values: values["validations"][0].update(step=values["validations"][0]["step"] + 1),
    "a validation more": lambda values: values["validations"].insert(0, {"step": 1, "loss": 0.1, "accuracy": 0.99}),
    "the last validation": lambda values: values["validations"][-1].update(accuracy=0.99),
    "fewer gradients": lambda values: values["history"][0].update(gradients=1),
    "no gradients": lambda values: values["history"][0].update(gradients=None),
    "a training loss": lambda values: (values["history"][0].update(train_loss=0.1), values.update(train_loss=0.1)),
    "a running loss": lambda values: values["history"][0].update(running_loss=0.1),
    "a step left out": lambda values: values["step_losses"][0].pop(),
    "another learning rate": set_lr,
    "a divergence beside a complete test": declare_diverged,
    "a key more in train.json": lambda values: values.update(payload="x" * 100),
}
TEST = {
    "an image of another class": swap_rows,
    "the accuracy of a class": lambda values: values["class_accuracy"][0].__setitem__(1, 2.0),
    "a negative loss": lambda values: values.update(test_loss=-5.0),
    "a key less in test.json": lambda values: values.pop("test_loss"),
}


def keep_runs_of_other_seeds(folder):
    path = first(folder, "runs", "train.json")
    shutil.copytree(path.parent, folder / "runs" / "sign-5")


def redirect_link(folder):
    (folder / "pipeline").unlink()
    shutil.copytree(folder.parents[1] / "pipeline", folder / "pipeline")


def redirect_link_elsewhere(folder):
    (folder / "pipeline").unlink()
    (folder / "pipeline").symlink_to("runs")


def change_command(folder):
    path = folder / "dvc.lock"
    path.write_text(re.sub(r"(cmd: python pipeline/train.py \S+ \d+)", r"\1; true", path.read_text(), count=1))


def add_file(folder):
    (folder / "sitecustomize.py").write_text("print(1)\n")


def add_results(folder):
    path = folder.parents[1] / ".optlab" / "trials" / "x" / "1.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert subprocess.run(["git", "add", "-f", path], cwd=folder, check=False).returncode == 0


def add_compiled_module(folder):
    path = folder.parents[1] / "src" / "optlab" / "training" / "__pycache__" / "loop.cpython-311.pyc"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert subprocess.run(["git", "add", "-f", path], cwd=folder, check=False).returncode == 0


def shadow_package(folder):
    (folder.parents[1] / "pipeline" / "torch.py").write_text("")


def link_file(folder):
    path = first(folder, "runs", "test.json")
    path.rename(folder.parents[1] / "elsewhere.json")
    path.symlink_to("../../../../elsewhere.json")


def damage(folder):
    rewrite(first(folder, "runs", "test.json"), lambda values: values.update(confusion=[[1], [2, 3]], correct=[]))
    seal(folder)


def add_output(folder):
    path = folder / "dvc.lock"
    more = "    - path: ../../src/optlab/cli.py\n      hash: md5\n      md5: 0123\n"
    path.write_text(path.read_text() + more)


def edit_table(folder):
    path = folder.with_name("RANKING.md")
    path.write_text(path.read_text().replace("| 1 – 3 |", "| 1 |").replace("± ", "± 0"))


FORGERIES = {
    "an accuracy in one file": (change_one_accuracy, "digests"),
    "a seed chosen": (choose_seed, "parameters and seeds"),
    "a trial left out": (leave_out_trial, "searches"),
    "a trial more": (add_trial, "searches"),
    "another choice": (choose_other_trial, "searches"),
    "weights altered": (alter_weights, "runs"),
    "weights altered in dvc.lock": (replace_weights_in_lock, "digests"),
    "another split": (change_split, "parameters and seeds"),
    "other data": (change_data, "digests"),
    "a dependency dropped": (drop_dependency, "stages and code"),
    "code edited beside the record": (edit_code, "changes nothing else"),
    "protocol edited": (edit_protocol, "changes nothing else"),
    "a module of the repository edited": (read_test_split, "changes nothing else"),
    "a module of others edited": (edit_module_of_others, "changes nothing else"),
    "runs of other seeds": (keep_runs_of_other_seeds, "no other files"),
    "code in place of a link": (redirect_link, "no other files"),
    "a link elsewhere": (redirect_link_elsewhere, "stages and code"),
    "a command in dvc.lock": (change_command, "digests"),
    "a file more": (add_file, "no other files"),
    "results of trials": (add_results, "no other files"),
    "a module in place of torch": (shadow_package, "no other files"),
    "a link in place of a file": (link_file, "no other files"),
    "a damaged record": (damage, "runs"),
    "an output more in dvc.lock": (add_output, "digests"),
    "the table edited": (edit_table, "table"),
    "a key more in trials.json": (in_first("tuning", "trials.json", lambda values: values.update(x=1)), "searches"),
    "trials of a grid": (
        in_first("tuning", "trials.json", lambda values: values.update(sensitivity=values["trials"][:1])), "searches"
    ),
    **{title: (in_first("runs", "train.json", change), "runs") for title, change in TRAINING.items()},
    **{title: (in_first("runs", "test.json", change), "runs") for title, change in TEST.items()},
    "conditions of other weights": (
        in_first("runs", "conditions.json", lambda values: values.update(weights_sha256="0" * 64)), "runs"
    ),
}  # fmt: skip


# Without a revision of trusted code and protocol.
OUTSIDE = {
    "code edited": (edit_code, "digests"),
    "a module that reads the test split": (read_test_split, "optimizer's modules"),
    "other code than the protocol's": (edit_protocol, "stages and code"),
    "a compiled module": (add_compiled_module, "no other files"),
}


@pytest.mark.parametrize("base", [None, "base"])
def test_record_as_submitted_is_accepted(record, base):
    assert check(record[0], base) == {}


@pytest.mark.parametrize(("forge", "title"), (FORGERIES | OUTSIDE).values(), ids=FORGERIES | OUTSIDE)
def test_forgery_is_refused_at_once(record, forge, title):
    project, folder = record
    base = None if (forge, title) in OUTSIDE.values() else "base"
    forge(folder)
    git(project, "add", "-A")
    git(project, "commit", "-qm", "forged")  # fails if nothing was changed
    problems = check(project, base)
    assert any(each.startswith(title) for each in problems), problems


def test_record_of_earlier_code_names_its_commit(record):
    project, folder = record
    made = git(project, "rev-parse", "HEAD")[:12]
    edit_code(folder)
    commit(project)
    (problem,) = (text for title, text in check(project).items() if title.startswith("digests"))
    assert f"verify it after `git checkout {made}`" in problem


def test_files_that_are_not_in_the_cache_are_accepted(record):
    project, _ = record
    shutil.rmtree(project.top / ".dvc" / "cache")
    assert (project.top / "data" / "cifar10").is_dir() and check(project, "base") == {}


def test_search_from_known_trials_has_no_conditions(record):
    """A record that is submitted again trains no trial, and so writes no conditions of a search."""
    project, folder = record
    for path in folder.glob("tuning/*/conditions.json"):
        git(project, "rm", "-q", str(path.relative_to(project.top)))
    commit(project)
    assert check(project) == {}


def test_other_packages_are_named_and_no_refusal(record, monkeypatch):
    project, _ = record
    monkeypatch.setattr(rerun, "get_installed_version", lambda name: "0.1")
    with contextlib.chdir(project.top):
        loaded = verification.RankingRecord.load(Path("ranking/sign"))
        with pytest.raises(ConfigError, match=r"recorded with torch .*, and 0\.1 is installed: install torch"):
            list(verification.check_files(loaded))


def test_record_with_name_of_a_reference_is_an_error(record):
    project, folder = record
    shutil.copytree(folder, folder.with_name("adam"), symlinks=True)
    with (
        contextlib.chdir(project.top),
        pytest.raises(ConfigError, match="ranking/adam: studies/small has an optimizer"),
    ):
        table.collect(Ranking.load(Path("ranking")))


def test_incomplete_record_of_another_does_not_hide_a_complete_one(record):
    """Its trainings were interrupted; `optlab submit` of another one names both."""
    project, folder = record
    other = folder.with_name("mine")
    other.mkdir()
    (other / "params.yaml").write_text((folder / "params.yaml").read_text().replace("  sign:", "  mine:"))
    result = project.run_forked("optlab", "submit", "custom/sign_descent.py")
    assert result.returncode == 1
    said = result.stderr.splitlines()[-1]
    assert said.startswith("error: ranking/sign: the record is complete, but ranking/RANKING.md is not written: ")
    assert "ranking/mine/runs/" in said


def test_renamed_record_is_refused(record):
    project, folder = record
    for path in [folder / "params.yaml", folder / "dvc.yaml", folder / "dvc.lock"]:
        path.write_text(path.read_text().replace("sign", "mine").replace("mine_descent", "sign_descent"))
    for path in [*folder.glob("runs/*"), *folder.glob("tuning/*")]:
        path.rename(path.with_name(path.name.replace("sign", "mine")))
    folder.rename(folder.with_name("mine"))
    commit(project)
    with contextlib.chdir(project.top):
        loaded = verification.RankingRecord.load(Path("ranking/mine"))
        found = {each.title: each.problem for each in verification.check_files(loaded)}
    assert "params.yaml: tuning.seed is " in found["parameters and seeds of the protocol"]


def test_consistent_forgery_is_refused_when_drawn(record):
    project, folder = record
    change_accuracy(folder)
    seal(folder)
    with contextlib.chdir(project.top):
        table.write(Ranking.load(Path("ranking")))
    commit(project)
    assert check(project, "base") == {}
    forged = first(folder, "runs", "test.json").parent.name
    seeds = YAML(typ="safe").load(folder / "params.yaml")["seeds"]
    number = seeds.index(int(forged.removeprefix("sign-"))) + 1
    result = verify(project, "--replicate", str(number))
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(rf"^{forged} +different ", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("ranking/sign: not verified\n")


def test_draw_takes_any_replicate_one_or_all(small_config):
    config = small_config(seeds=[5, 6, 7])
    drawn = {tuple(verification.draw_seeds(config, None, everything=False)) for _ in range(200)}
    assert drawn == {(5,), (6,), (7,)}
    assert verification.draw_seeds(config, 2, everything=False) == [6]
    assert verification.draw_seeds(config, None, everything=True) == [5, 6, 7]
    assert "probability k/3" in verification.describe_draw(config, [6])
    with pytest.raises(ConfigError, match="replicates 1 to 3"):
        verification.draw_seeds(config, 0, everything=False)


def test_refusals_are_printed_and_nothing_is_trained(record):
    project, folder = record
    change_one_accuracy(folder)
    result = verify(project)
    assert result.returncode == 1 and "drawn" not in result.stdout
    (line,) = result.stdout.splitlines()
    assert line.startswith("ranking/sign: refused: ") and "test.json: not as in the last commit" in line
    assert verify(project, "--replicate", "3").returncode == 2
    both = verify(project, "--all", "--replicate", "1")
    assert both.returncode == 2 and "--all takes every replicate, and --replicate one" in both.stderr


def test_ranking_is_function_of_records(record):
    project, _ = record
    files = [project.top / "ranking" / name for name in ("RANKING.md", "report.html")]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    result = project.run_forked("optlab", "rank")
    assert result.returncode == 0, result.stderr
    assert [path.read_bytes() for path in files] == before and result.stdout == before[0].decode()


def test_no_places_before_references_are_complete(record):
    project, _ = record
    text = (project.top / "ranking" / "protocol.yaml").read_text()
    (project.top / "ranking" / "protocol.yaml").write_text(
        text.replace("replicates: 2", "replicates: 3").replace("looks: [2]", "looks: [3]")
    )
    with contextlib.chdir(project.top):
        files = table.render_files(Ranking.load(Path("ranking")))
    ranked = files[Path("ranking/RANKING.md")].decode()
    assert files[Path("ranking/report.html")] is None
    assert (
        "the references in studies/small have 2 of 3 replicates" in ranked
        and "Records without a place: sign." in ranked
    )


@pytest.mark.parametrize("verdict", ["", "verdict: {margin: 0.01}", "verdict: {looks: [2, 3]}"])
def test_places_come_from_one_look_with_all_replicates(tmp_path, verdict):
    text = f"version: 1\nstudy: a\nreplicates: 3\ncode: ['{'0' * 64}']\nparams:\n  model: zilliax\n"
    (tmp_path / "protocol.yaml").write_text(text + (f"  {verdict}\n" if verdict else ""))
    with pytest.raises(ConfigError, match=r"params: verdict\.looks: has to be \[3\]"):
        Ranking.load(tmp_path)


def test_empty_protocol_is_one_line(tmp_path):
    (tmp_path / "protocol.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"protocol\.yaml: its content: "):
        Ranking.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1", "version: 0", "version: "),
        ("params:", "params:\n  seeds: [1]", "params: has seeds"),
        ("trials: 2", "seed: 3, trials: 2", "params: tuning has a seed"),
        ("epochs: 1", "epochs: 2", "training is not what ranking/protocol.yaml has"),
        ("version: 1", "version: [", "no YAML"),
        ("tuning: {trials: 2, halving: 1, per_seed: true}", "tuning: 5", "tuning: must be a mapping"),
    ],
)
def test_unusable_protocol_is_one_line(record, monkeypatch, old, new, said):
    project, _ = record
    path = project.top / "ranking" / "protocol.yaml"
    path.write_text(path.read_text().replace(old, new))
    monkeypatch.chdir(project.top)
    with pytest.raises(ConfigError, match=re.escape(said)):
        Ranking.load(Path("ranking")).check_study()


ORDINARY = """
import math
from collections.abc import Callable
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
class Mine(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
    @torch.no_grad()
    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_([], 1.0)
        self._steps = torch._foreach_norm([torch.ones(1)])
        return math.sqrt(4)
"""
REFUSED = {
    "open": 'open("data/cifar10/test_batch.bin")',
    "pathlib": "import pathlib",
    "numpy": "from numpy import fromfile",
    "the data module": "from optlab.data import cifar10",
    "torchvision": "import torchvision.datasets",
    "torch.load": 'torch.load("x")',
    "torch.from_file": 'torch.from_file("x", size=3)',
    "torch.hub": "torch.hub",
    "torch.utils": "torch.utils.data",
    "import of torch.utils": "import torch.utils.data",
    "name from torch": "from torch import load",
    "eval": 'eval("1")',
    "builtins": '__builtins__["open"]',
    "getattr": 'getattr(torch, "lo" + "ad")',
    "globals of a function": "torch.no_grad.__globals__",
    "subclasses": "object.__subclasses__()",
    "module of a module": "torch.os",
    "all of torch": "from torch import *",
    "a module that enum holds": "enum.bltns.open",
    "ctypes": "torch.ctypes.CDLL(None)",
    "an attribute by its name": 'operator.attrgetter("serialization")',
    "a pattern": "match torch:\n    case object(serialization=x): pass",
    "a test module of torch": "from torch.testing._internal.common_utils import shell",
    "a hook": "model.register_forward_hook(print)",
    "a tensor's operations": "class Spy:\n    def __torch_function__(self): pass",
    "many numbers": "WEIGHTS = [" + "0.123456789, " * 6000 + "]",
    "a syntax error": "def",
    "annotations that are evaluated": "import typing\ntyping.get_type_hints(torch.Tensor)",
    "annotations that are evaluated, by name": "from functools import singledispatch",
    "what is internal to a module": 'import dataclasses\ndataclasses._create_fn("f", [], ["return 1"])()',
    "source that torch runs": 'torch.fx.graph_module.exec("1")',
    "what every module has": "from .other import __builtins__",
    "a function of torch replaced": "torch.nn.functional.cross_entropy = print",
    "an item of torch replaced": "torch.nn.modules.module.hooks[0] = print",
    "a line of a file": 'import warnings\nwarnings.formatwarning("", UserWarning, "data/x", 1)',
    "text that Python prints": "license.__setup()",
    "a file that numpy writes": 'torch.zeros(3).numpy().dump("x")',
    "an import by help": 'help("x")',
    "a class without a statement": 'type("Spy", (torch.Tensor,), {})',
    "too deep to parse": "x = " + "-" * 30_000 + "1",
}


def test_classes_of_torch_ready_packages_and_scanned_modules_are_accepted():
    classes = ["Adam", "pytorch_optimizer.Lion", "mine.Sign", "os.Popen", "other.Sign"]
    assert module_scan.scan_class_paths(classes, [Path("custom/mine.py")]) == ["class os.Popen", "class other.Sign"]


def test_ordinary_module_is_accepted(tmp_path):
    path = tmp_path / "custom" / "mine.py"
    path.parent.mkdir()
    path.write_text(ORDINARY)
    assert module_scan.scan([path, *TOP.glob("custom/*.py")]) == []


def test_module_with_name_of_package_is_refused(tmp_path):
    path = tmp_path / "custom" / "ruamel.py"
    path.parent.mkdir()
    path.write_text("")
    assert module_scan.scan([path]) == [f"{path}:1: has the name of the package ruamel"]


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED)
def test_module_with_more_than_arithmetic_is_refused(tmp_path, line):
    path = tmp_path / "custom" / "mine.py"
    path.parent.mkdir()
    path.write_text(f"import torch\n{line}\n")
    (refused,) = module_scan.scan([path])[:1]
    assert refused.startswith(f"{path}:")


RECORDS = sorted(path.parent.relative_to(TOP) for path in TOP.glob("ranking/*/params.yaml"))


@pytest.mark.parametrize("folder", RECORDS, ids=[each.name for each in RECORDS])
def test_committed_record_is_consistent(folder, monkeypatch):
    """Whatever code has made it: the keys of its trials contain the code's digests."""
    monkeypatch.chdir(TOP)
    record = verification.RankingRecord.load(folder)
    for check_part in (verification._check_params, verification._check_runs, verification._check_table):
        check_part(record)
    if not record.config.get_optimizer(record.name).ranges:
        verification._check_searches(record)


CHANGED = {
    "another module": (["custom/other.py"], 0, ""),
    "protocol, code and table": (["ranking/protocol.yaml", "src/code.py", "ranking/RANKING.md"], 0, ""),
    "a record": (["ranking/mine/dvc.lock", "ranking/RANKING.md"], 0, "RECORD=ranking/mine\n"),
    "a record's module": (["custom/mine.py"], 0, "RECORD=ranking/mine\n"),
    "a record and code": (["ranking/mine/dvc.lock", "src/code.py"], 1, ""),
    "two records": (["ranking/mine/dvc.lock", "ranking/new/dvc.lock"], 1, ""),
}


@pytest.mark.parametrize(("names", "status", "record"), CHANGED.values(), ids=CHANGED)
def test_workflow_takes_one_record_and_nothing_beside(tmp_path, monkeypatch, names, status, record):
    def run(*command):
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        assert run("git", "add", name).returncode == 0

    monkeypatch.setenv("BASE", "HEAD~1")
    monkeypatch.setenv("GITHUB_ENV", str(tmp_path / "environment"))
    run("git", "init", "-q")
    for key in ("user.name", "user.email"):
        run("git", "config", key, "x")
    write("ranking/mine/dvc.yaml", "deps:\n- custom/mine.py\n")
    run("git", "commit", "-qm", "base")
    for name in names:
        write(name, "changed")
    run("git", "commit", "-qm", "changed")
    steps = YAML(typ="safe").load(TOP / ".github" / "workflows" / "ranking.yml")["jobs"]["verify"]["steps"]
    result = run("bash", "-e", "-c", steps[1]["run"])
    assert result.returncode == status, result.stdout + result.stderr
    written = tmp_path / "environment"
    assert (written.read_text() if written.exists() else "") == record
