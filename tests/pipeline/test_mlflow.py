"""What MLflow holds after a run, and what happens where it cannot be reached."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import projects
import pytest
from PIL import Image
from projects import list_started_stages


def look(project, *words, **environment):
    result = project.run_forked(str(Path(__file__).with_name("mlflow_snapshot.py")), *words, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def logged(reproduced):
    """The bare client's view, with nothing configured, in the repository."""
    return look(reproduced[0])


def run_of(logged, name):
    (run,) = [run for run in logged["runs"] if run["name"] == name]  # training and evaluation share one
    return run


def test_run_contains_hyperparameters_losses_and_weights(logged, reproduced):
    run = run_of(logged, "adam-0")
    trained = json.loads((reproduced[0].top / "runs/adam-0/train.json").read_text())
    assert run["status"] == "FINISHED"
    assert run["params"]["optimizer.lr"] == "0.001"
    assert run["params"]["optimizer.betas"] == "(0.9, 0.999)"  # a default of the class
    assert run["params"]["training.batch_size"] == "16"
    losses = [loss for epoch in trained["step_losses"] for loss in epoch]
    assert [step for step, _, _ in run["steps"]] == list(range(14))
    assert [value for _, value, _ in run["steps"]] == pytest.approx(losses)
    assert [step for step, _, _ in run["epochs"]] == [1, 2]
    assert (
        run["metrics"]["test/accuracy"]
        == json.loads((reproduced[0].top / "runs/adam-0/test.json").read_text())["test_accuracy"]
    )
    assert run["tags"]["weights.sha256"] == trained["weights_sha256"]
    assert run["tags"]["status"] == "completed"
    assert run["tags"]["mlflow.runColor"].startswith("#")
    assert len(run["tags"]["mlflow.source.git.commit"]) == 40
    assert run["tags"]["git.dirty"] in ("yes", "no")
    assert len(run["inputs"]) == 1
    assert {"weights/adam-0.safetensors", "figures/confusion_matrix.html"} <= set(run["files"])


def test_metric_times_lie_within_training(logged):
    run = run_of(logged, "sgd-0")
    times = [time for _, _, time in run["steps"]]
    assert run["start"] <= times[0] <= times[-1] <= run["end"]
    assert times == sorted(times)


def test_artifacts_move_with_repository(logged, copied):
    assert logged["location"].startswith("mlruns/")
    run = run_of(look(copied), "adam-0")
    assert "weights/adam-0.safetensors" in run["files"]
    path = copied.top / "mlruns" / logged["location"].split("/")[1] / run["id"] / "artifacts/weights/adam-0.safetensors"
    assert path.read_bytes() == (copied.top / "models/adam-0.safetensors").read_bytes()


@pytest.fixture(scope="module")
def moved(reproduced, tmp_path_factory):
    """A copy of the finished project that was moved: nothing is left that the old place still answers for."""
    top = tmp_path_factory.mktemp("moved")
    project = reproduced[0].copy(top / "first")
    (top / "elsewhere").mkdir()
    shutil.move(project.top, top / "elsewhere" / "moved")
    return projects.Project(top / "elsewhere" / "moved")


def test_moved_repository_keeps_working(moved, tmp_path):
    project = moved
    # The tutorial's pipeline has not run: it is not asked about.
    assert project.run("dvc", "status", "dvc.yaml").stdout.strip() == "Data and pipelines are up to date."
    again = project.repro()
    assert (again.returncode, "Running stage" in again.stdout) == (0, False), again.stdout
    (tmp_path / "fetched").mkdir()
    held = look(project, str(tmp_path / "fetched"))
    assert "weights/adam-0.safetensors" in run_of(held, "adam-0")["files"]
    fetched = tmp_path / "fetched" / "weights" / "adam-0.safetensors"
    assert fetched.read_bytes() == (project.top / "models/adam-0.safetensors").read_bytes()
    Image.new("L", (40, 40), 128).save(tmp_path / "grey.png")
    assert project.run_forked("optlab", "predict", str(tmp_path / "grey.png")).stdout.count("%") == 3
    assert "has everything: no runs had something to send" in project.run_forked("optlab", "sync").stdout


def test_served_champion_matches_recorded_weights(moved, tmp_path):
    """Served from another process with bare MLflow, the champion gives the outputs of the weights in the record.

    So it does in a repository that was moved.
    """
    project = moved
    champion = json.loads((project.top / "reports/champion.json").read_text())["champion"]
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    (tmp_path / "in.json").write_text(json.dumps({"inputs": images.tolist()}))
    answer = tmp_path / "out.json"
    result = project.run(
        "mlflow", "models", "predict", "-m", "models:/optlab-cifar10@champion", "--env-manager", "local",
        "-i", str(tmp_path / "in.json"), "-t", "json", "-o", str(answer),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    import torch

    from optlab.training import weights

    model, _ = weights.load_model(project.top / "models" / f"{champion}.safetensors", "zilliax")
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(json.loads(answer.read_text())["predictions"], expected, rtol=1e-4, atol=1e-5)


def test_artifacts_contain_no_pickle(reproduced):
    names = [path.name for path in (reproduced[0].top / "mlruns").rglob("*") if path.is_file()]
    assert {"MLmodel", "pyfunc_model.py"} <= set(names)
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pth", ".pt", ".pt2", ".bin"))]


def test_concurrent_first_stages_share_new_database(fresh):
    fresh.edit("params.yaml", "threads: 2", "threads: 1")
    assert fresh.run_stage("download").returncode == 0
    command = [sys.executable, "pipeline/train.py"]
    pair = [
        subprocess.Popen([*command, name, "0"], cwd=fresh.top, env=fresh.environment, stderr=subprocess.PIPE, text=True)
        for name in ("sgd", "adam")
    ]
    for process in pair:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "warning" not in errors
    assert sorted(run["name"] for run in look(fresh)["runs"]) == ["adam-0", "sgd-0"]


def test_unreachable_server_costs_only_one_warning(copied):
    """The training ends as usual; with a reachable store, the next stage sends what is missing, with its times."""
    record = (copied.top / "runs/adam-0/train.json").read_bytes()
    before = look(copied)
    # Port 9 of this machine: nothing listens there.
    result = copied.run_stage("train", "adam", "0", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("warning") == 1
    assert (copied.top / "runs/adam-0/train.json").read_bytes() == record
    assert len(look(copied)["runs"]) == len(before["runs"])
    assert copied.run_stage("evaluate", "adam", "0").returncode == 0
    after = look(copied)
    (new,) = [run for run in after["runs"] if run["id"] not in {old["id"] for old in before["runs"]}]
    assert [step for step, _, _ in new["steps"]] == list(range(14))
    assert new["steps"][-1][2] <= new["end"]
    assert new["metrics"]["test/accuracy"] == run_of(before, "adam-0")["metrics"]["test/accuracy"]


def test_changed_learning_rate_updates_runs_summaries_and_tags(copied, reproduced):
    """Each optimizer has one summary, apart from the trainings: none is doubled, and one that changes is replaced."""
    before = look(copied)["summaries"]
    record = json.loads((copied.top / "reports/summary/adam.json").read_text())
    assert sorted(each["name"] for each in before) == ["adam", "sgd"]
    (adam,) = (each for each in before if each["name"] == "adam")
    assert adam["metrics"]["test_accuracy/mean"] == pytest.approx(record["test_accuracy"]["mean"], abs=5e-5)
    assert [step for step, _ in adam["curve"]] == [7, 14]
    assert not {"optlab.run", "comparison", "optimizer"} & set(adam["tags"])

    copied.edit("params.yaml", "lr: 0.001", "lr: 0.003")
    sgd = (copied.top / "models/sgd-0.safetensors").stat().st_mtime_ns
    assert list_started_stages(copied.repro()) == {"tune@adam-0", "train@adam-0", "evaluate@adam-0", "compare"}
    assert (copied.top / "models/sgd-0.safetensors").stat().st_mtime_ns == sgd
    assert "up to date" in copied.repro().stdout
    found = look(copied)
    assert len(found["runs"]) == 3
    marks = {(run["params"]["optimizer.lr"], run["tags"]["comparison"]) for run in found["runs"]}
    assert marks == {("0.01", "current"), ("0.001", "earlier"), ("0.003", "current")}
    assert sorted(each["name"] for each in found["summaries"]) == ["adam", "sgd"]
    kept = {each["id"] for each in found["summaries"]} & {each["id"] for each in before}
    assert kept == {each["id"] for each in before} - {adam["id"]}
    assert copied.run_forked("optlab", "show").returncode == 0
    again = look(copied)
    assert (len(again["runs"]), again["summaries"]) == (3, found["summaries"])


def test_restored_runs_reach_mlflow_and_sync_refills_it(copied, tmp_path):
    """A second clone with the first one's cache trains nothing; then its database is lost."""
    record = {name: run_of(look(copied), name) for name in ("adam-0", "sgd-0")}
    clone = copied.clone(tmp_path / "clone", cached=True)
    printed = clone.repro()
    assert printed.returncode == 0, printed.stderr
    assert not [stage for stage in list_started_stages(printed) if stage.startswith(("train", "evaluate"))]

    def complete():
        held = look(clone)
        assert sorted(run["name"] for run in held["runs"]) == ["adam-0", "sgd-0"]
        for name, own in record.items():
            run = run_of(held, name)
            assert [each[1] for each in run["steps"]] == pytest.approx([each[1] for each in own["steps"]])
            assert run["files"] == own["files"]
            not_in_the_record = {"device", "model.parameters", "steps_per_epoch"}
            assert dict(run["params"].items() ^ own["params"].items()).keys() <= not_in_the_record
            assert (run["tags"]["comparison"], len(run["models"])) == ("current", 1)
        assert len(held["summaries"]) == 2

    complete()
    assert clone.run_forked("optlab", "show").returncode == 0
    complete()
    (clone.top / "mlflow.db").unlink()
    shutil.rmtree(clone.top / "mlruns")
    sent = clone.run_forked("optlab", "sync")
    assert "sent the comparison of optlab\n" in sent.stdout and not sent.stderr, sent.stdout + sent.stderr
    complete()
    assert "no runs had something to send" in clone.run_forked("optlab", "sync").stdout
