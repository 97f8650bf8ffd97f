"""`dvc repro` as a user runs it, on the small sample."""

import csv
import json
import re
import shutil

import pytest
from dvc.repo import Repo
from projects import TOP, list_started_stages

from optlab.data import cifar10
from optlab.training import loop, weights


def test_repro_prints_table_and_report_path(reproduced):
    _, printed = reproduced
    assert re.search(r"adam +1 +completed +\d+\.\d\d %", printed)
    assert "Report: reports/report.html" in printed
    assert '`optlab ui` (or `mlflow ui`, then "Model training", top left) opens its pages' in printed


def test_repro_writes_all_outputs(reproduced):
    project, _ = reproduced
    for name in ("models/adam-0.safetensors", "runs/adam-0/train.json", "runs/adam-0/test.json", "reports/report.html",
                 "runs/adam-0/predictions.csv", "reports/comparison.md", "reports/curves.png"):  # fmt: skip
        assert (project.top / name).stat().st_size > 100, name
    page = (project.top / "reports" / "report.html").read_text()
    assert "default-src 'none'" in page and not re.search(
        r"""(src|href)=["']?(https?:)?//""", page
    )  # nothing is fetched


def test_record_is_internally_consistent(reproduced):
    project, _ = reproduced
    trained = json.loads((project.top / "runs/adam-0/train.json").read_text())
    assert [len(losses) for losses in trained["step_losses"]] == [7, 7]  # 100 images in batches of 16, two epochs
    running = sum(trained["step_losses"][0])
    assert trained["history"][0]["running_loss"] == pytest.approx(running, rel=1e-5)
    tested = json.loads((project.top / "runs/adam-0/test.json").read_text())
    with (project.top / "runs/adam-0/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(row["actual"] == row["predicted"] for row in rows)
    assert tested["test_accuracy"] == right / len(rows)
    assert sum(map(sum, tested["confusion"])) == len(rows) == 100
    assert tested["weights_sha256"] == trained["weights_sha256"]


def test_folder_without_stages_is_one_line(copied):
    """A new study needs the stages of another one."""
    folder = copied.top / "studies" / "mine"
    folder.mkdir(parents=True)
    shutil.copy(copied.top / "params.yaml", folder)
    result = copied.run_forked("optlab", "repro", folder="studies/mine")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == ("error: studies/mine: has no dvc.yaml: copy that of a study, such as studies/optimizers\n")


def test_evaluation_of_mirror_images_adds_their_accuracy_to_the_record(copied, small_config):
    paths = [copied.top / "runs/sgd-0" / name for name in ("test.json", "predictions.csv")]
    tested, predictions = (path.read_text() for path in paths)
    copied.edit("params.yaml", "validation_size: 20", "validation_size: 20, mirror_test: true")
    result = copied.run_stage("evaluate", "sgd", "0")
    assert result.returncode == 0, result.stderr
    found = paths[0].read_text()
    (added,) = set(found.splitlines()) - set(tested.splitlines())
    model, _ = weights.load_model(copied.top / "models/sgd-0.safetensors", "zilliax")
    split = cifar10.load_test_split(copied.top / "data/cifar10", small_config().data)
    both = sum(loop.predict(model, each) for each in (split, split.mirror()))
    accuracy = loop.compute_loss_and_accuracy(both, split.labels)[1]
    assert added == f'  "mirrored_test_accuracy": {accuracy},'
    assert accuracy != json.loads(tested)["test_accuracy"]
    assert found.replace(f"{added}\n", "") == tested and paths[1].read_text() == predictions


def test_record_contains_no_time_or_path(reproduced, tmp_path_factory):
    project, _ = reproduced
    paths = [*project.top.rglob("runs/**/*.json"), *project.top.rglob("reports/**/*.[cmjh]*")]
    assert len(paths) > 10
    for path in paths:
        text = path.read_text()
        for library in (TOP / "src" / "optlab" / "analysis" / "vendor").glob("*.js"):  # which have dates of their own
            text = text.replace(library.read_text(), "")
        assert str(tmp_path_factory.getbasetemp()) not in text  # it was made in another folder there
        assert not re.search(r"\b20\d\d-\d\d-\d\d|\b1[789]\d{8}(\d{3})?\b", text), path


def test_forced_repro_leaves_lock_unchanged(copied):
    lock = (copied.top / "dvc.lock").read_bytes()
    result = copied.repro("--force")
    assert result.returncode == 0, result.stderr
    assert "Running stage 'train@adam-0'" in result.stdout
    assert (copied.top / "dvc.lock").read_bytes() == lock


RUNS = {"train@adam-0", "train@sgd-0", "evaluate@adam-0", "evaluate@sgd-0"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("lr: 0.001", "lr: 0.002", {"tune@adam-0", "compare"}),
        ("threads: 2", "threads: 1", {"tune@adam-0", "tune@sgd-0", "compare"} | RUNS),
        ("epochs: 2", "epochs: 3", {"tune@adam-0", "tune@sgd-0", "compare"} | RUNS),
        ("seeds: [0]", "# more\nseeds: [0]", set()),
        ("seeds: [0]", "seedling: 3\nseeds: [0]", {"compare"}),
        ("optimizers:", "optimizers:\n  nadam: {class: NAdam}", {"tune@nadam-0"}),
        ("  sgd: {class: SGD, lr: 0.01}\n", "", {"compare"}),
    ],
    ids=["adam's lr", "threads", "epochs", "comment", "unknown key", "new optimizer", "optimizer removed"],
)
def test_params_edit_reruns_only_dependent_stages(copied, old, new, expected):
    """A dry run names the stages whose own parameters changed; those behind them follow if their inputs change."""
    copied.edit("params.yaml", old, new)
    assert list_started_stages(copied.repro("--dry")) == expected


TUNE = {"tune@adam-0", "tune@sgd-0"}
ALL = TUNE | RUNS
TOUCHED = {
    "src/optlab/preflight/error_attribution.py": set(),
    "src/optlab/config/loader.py": set(),
    "src/optlab/system/errors.py": set(),
    "src/optlab/system/files.py": set(),
    "src/optlab/tracking/callbacks.py": set(),  # the progress bar
    "src/optlab/tracking/mlflow_writer.py": set(),
    "src/optlab/orchestration/repro.py": set(),
    "src/optlab/data/download.py": {"download"},
    "src/optlab/preflight/checks.py": set(),  # words errors, and lists the tested classes
    "src/optlab/environment.py": set(),
    "src/optlab/data/cifar10.py": {"download"} | ALL,  # has the digests of the data
    "src/optlab/schema/optimizer.py": {"compare"} | ALL,
    "src/optlab/schema/parameters.py": {"compare"} | ALL,
    "src/optlab/training/loop.py": ALL,
    "src/optlab/training/models.py": ALL,
    "src/optlab/training/schedules.py": ALL,
    "custom/sign_descent.py": TUNE,  # which find that no run uses it
    "src/optlab/schema/search_space.py": {"compare"} | ALL,
    "src/optlab/orchestration/tuning_session.py": set(),
    "src/optlab/tuning/session.py": TUNE,
    "src/optlab/tuning/search.py": {"compare"} | TUNE,
    "src/optlab/records.py": {"compare"} | ALL,
    "src/optlab/analysis/report.py": {"compare"},
    "src/optlab/analysis/metrics.py": {"compare", "evaluate@adam-0", "evaluate@sgd-0"},
}


def test_code_edit_reruns_only_dependent_stages(copied, monkeypatch):
    """Each file with a comment more, one after the other: what decides an output, and what only words a message."""
    monkeypatch.chdir(copied.top)
    found = {}
    for path in TOUCHED:
        before = (copied.top / path).read_text()
        (copied.top / path).write_text(f"{before}# edited\n")
        with Repo() as repository:
            found[path] = set(repository.status(["dvc.yaml"]))
        (copied.top / path).write_text(before)
    assert found == TOUCHED


def test_unknown_params_key_stops_with_one_line(copied):
    copied.edit("params.yaml", "seeds: [0]", "seed: 3\nseeds: [0]")
    result = copied.repro()
    assert result.returncode != 0
    assert "error: params.yaml:2: seed: unknown key: did you mean seeds?" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_misspelt_optimizer_stops_before_training(copied):
    copied.edit("params.yaml", "class: SGD", "class: Adm")
    result = copied.repro()
    assert result.returncode != 0
    assert "did you mean Adam?" in result.stderr
    assert not list_started_stages(result) & RUNS


def test_diverged_run_does_not_fail_pipeline(copied):
    copied.edit("params.yaml", "lr: 0.01", "lr: 1.0e+30")
    copied.edit("params.yaml", "epochs: 2", "epochs: 1")
    result = copied.repro()
    assert result.returncode == 0, result.stderr
    trained = json.loads((copied.top / "runs/sgd-0/train.json").read_text())
    tested = json.loads((copied.top / "runs/sgd-0/test.json").read_text())
    assert trained["status"] == tested["status"] == "diverged"
    assert trained["step_losses"][0][0] == pytest.approx(2.3, abs=0.1)
    assert trained["step_losses"][-1][-1] is None
    assert re.search(r"sgd +0 of 1 +diverged", result.stdout)
    assert "diverged" in (copied.top / "reports" / "report.html").read_text()
    assert json.loads((copied.top / "reports/champion.json").read_text())["champion"] == "adam-0"


@pytest.mark.parametrize(
    ("name", "damage", "stage", "message"),
    [
        ("data/cifar10/test_batch.bin", lambda path: path.unlink(), "evaluate", "No such file"),
        ("data/cifar10/data_batch_3.bin", lambda path: path.write_bytes(b"x" * 307300), "train", "altered"),
        ("models/sgd-0.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-9]), "evaluate", "damaged"),
        ("models/sgd-0.safetensors", lambda path: path.write_text("hello"), "evaluate", "not safetensors"),
        ("runs/sgd-0/train.json", lambda path: path.write_text("{"), "evaluate", "damaged"),
    ],
    ids=["data missing", "data altered", "weights truncated", "weights of text", "record damaged"],
)
def test_damaged_input_is_rejected_in_one_line(copied, name, damage, stage, message):
    damage(copied.top / name)
    own = [*copied.top.glob("models/*"), *copied.top.glob("runs/*/*")]
    before = {path: path.read_bytes() for path in own}
    result = copied.run_stage(stage, "sgd", "0")
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 1
    assert len(lines) == 1
    assert name in lines[0]
    assert message in lines[0]
    assert "run `dvc" in lines[0]
    assert "Traceback" not in result.stderr
    assert len(before) > 3 and {path: path.read_bytes() for path in own} == before  # it loses nothing


def test_dvc_shows_metrics_plots_and_params(copied):
    metrics = json.loads(copied.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert list(metrics)[:3] == ["reports/summary/adam.json", "reports/summary/sgd.json", "runs/sgd-0/train.json"]
    tested = metrics["runs/adam-0/test.json"]["data"]
    assert metrics["reports/summary/adam.json"]["data"]["test_accuracy"]["mean"] == tested["test_accuracy"] > 0
    # The answers per image, which are a list of texts, would fill the table.
    hidden = json.loads((copied.top / "runs/adam-0/test.json").read_text()).keys() - tested
    assert hidden == {"class_accuracy", "confusion", "correct"}
    copied.run("git", "add", "-A")
    copied.run("git", "commit", "-qm", "record")
    copied.edit("params.yaml", "lr: 0.001", "lr: 0.002")
    assert "optimizers.adam.lr" in copied.run("dvc", "params", "diff").stdout
    shown = copied.run("dvc", "plots", "show", "--json")
    plots = json.loads(shown.stdout)["data"]
    assert shown.returncode == 0
    assert {"validation accuracy", "training loss", "confusion matrices"} <= set(plots)
    assert len(plots["validation accuracy"]) == 1  # one figure for all optimizers


def test_tutorial_pipeline_completes(reproduced, tmp_path):
    """It is a DVC project of its own, and gets the data from the one at the top, which has to restore it."""
    project = reproduced[0].copy(tmp_path / "tutorial")
    shutil.rmtree(project.top / "data" / "cifar10")
    project.edit("tutorial/params.yaml", "train_size: 10000", "dataset: cifar10_sample, train_size: 100")
    project.edit("tutorial/params.yaml", "epochs: 20", "epochs: 3")
    result = project.repro(folder="tutorial")
    assert result.returncode == 0, result.stderr
    assert "adam_fast-0  epoch 3/3  running loss" in result.stdout
    assert "trained on the test split" in result.stdout
    claims = (project.top / "tutorial" / "reports" / "claims.md").read_text()
    assert "| Adam may converge slowly |" in claims
    assert (project.top / "data" / "cifar10" / "test_batch.bin").exists()
    assert project.run("git", "status", "--short", "--", "data", ".dvc", "tutorial/.dvc", "tutorial/src").stdout == ""
    assert (project.top / "mlflow.db").exists()
    assert not (project.top / "tutorial" / "mlflow.db").exists()
    trained = json.loads((project.top / "tutorial/runs/adam-0/train.json").read_text())
    assert trained["validation_accuracy"] is None
    assert not list(project.top.glob("**/runs/**/.gitignore"))  # one at the top says it all
