"""A model as MLflow serves it: in an environment of the packages that it names, and with the user's own code."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from events import complete

from optlab.analysis import inference
from optlab.data.cifar10 import convert_to_input
from optlab.records import Champion, EpochMetrics, EvalRecord, RunFiles, TrainRecord
from optlab.schema import parameters
from optlab.system.errors import RecordError
from optlab.system.git import Revision
from optlab.tracking import event_log, maintenance, mlflow_store, mlflow_writer, pyfunc_model, uploader
from optlab.training import models, weights

# What the code of optlab itself imports from elsewhere, while such a model is loaded and asked.
WATCHED = """
import builtins, sys
seen, original = set(), builtins.__import__
def watch(name, names=None, *more, **named):
    if (names or {}).get("__name__", "").startswith("optlab."):
        seen.add(name.partition(".")[0])
    return original(name, names, *more, **named)
builtins.__import__ = watch
import optlab.tracking.pyfunc_model
from optlab.training import models, weights
from optlab.system.errors import print_stderr
models.build("resnet18", 0)
print_stderr("")
print(*sorted(seen - set(sys.stdlib_module_names) - {"optlab"}))
"""
OWN = """
def net():
    import scipy, helper
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
"""

EPOCH = EpochMetrics(epoch=1, train_loss=1, running_loss=1, validation_loss=1, validation_accuracy=1, lr=1)
SMALL = """
data: {train_size: 100, validation_size: 20}
training: {epochs: 1, batch_size: 16, threads: 1}
optimizers: {sgd: {class: SGD, lr: 0.1}}
"""


def test_model_requirements_cover_all_imports():
    told = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True).stdout.split()
    known = packages_distributions()
    assert {"torch", "psutil", "safetensors"} <= set(told)
    assert [name for name in told if not set(known[name]) & set(pyfunc_model.list_requirements("zilliax"))] == []


@pytest.fixture
def repository_with_models(top, monkeypatch):
    """A repository with a module in custom/ and another at its top, each with a model; the working directory."""
    (top / "custom").mkdir()
    (top / "custom" / "served_net.py").write_text(OWN)
    (top / "custom" / "helper.py").write_text("import matplotlib.pyplot\n")
    (top / "at_the_top.py").write_text(OWN.replace(", helper", ", PIL.Image"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # importing a model adds its folder
    yield top
    for name in ("served_net", "at_the_top", "helper"):
        sys.modules.pop(name, None)


def test_dotted_model_adds_its_packages(repository_with_models):
    """Also those that a module which it imports does."""
    plain = set(pyfunc_model.list_requirements("zilliax"))
    assert set(pyfunc_model.list_requirements("torchvision.models.resnet18")) == plain
    assert set(pyfunc_model.list_requirements("pytorch_optimizer.Net")) - plain == {"pytorch_optimizer"}
    assert set(pyfunc_model.list_requirements("served_net.net")) - plain == {"scipy", "matplotlib"}
    assert set(pyfunc_model.list_requirements("at_the_top.net")) - plain == {"scipy", "pillow"}


def test_top_level_model_is_logged_with_code(repository_with_models, monkeypatch):
    (repository_with_models / "custom" / "served_net.py").unlink()
    model = models.build("at_the_top.net", 0)
    path = repository_with_models / "weights.safetensors"
    digest = weights.save_model(path, model, "at_the_top.net")
    mlflow_store.connect()
    logged = mlflow.initialize_logged_model(name="net")
    pyfunc_model.log_model("net", logged.model_id, path, "at_the_top.net", digest)
    (repository_with_models / "at_the_top.py").unlink()
    sys.modules.pop("at_the_top")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(repository_with_models)])
    images = np.zeros((2, 3, 32, 32), np.float32)
    found = mlflow.pyfunc.load_model(f"models:/{logged.model_id}").predict(images)
    assert np.array_equal(found, model(torch.from_numpy(images)).detach().numpy())


def test_model_whose_module_has_changed_is_not_logged(repository_with_models, capsys):
    """With another constant, the same weights are another model."""
    path = repository_with_models / "weights.safetensors"
    weights.save_model(path, models.build("served_net.net", 0), "served_net.net")
    before, after = complete("adam-0"), complete("sgd-0")
    before.log_model(path, "adam-0", "served_net.net")
    assert uploader.push_pending() and capsys.readouterr().err == ""
    after.log_model(path, "sgd-0", "served_net.net")
    (repository_with_models / "custom" / "helper.py").write_text("WIDTH = 2\n")
    assert uploader.push_pending()
    assert "refuses the model of " in (said := capsys.readouterr().err) and "custom/helper.py is not the one" in said
    assert uploader.list_refused_logs() == [after.folder.name]
    client, runs = mlflow_store.connect(), mlflow_store.find_run_ids("optlab", [("adam-0", "abc"), ("sgd-0", "abc")])
    assert [bool(mlflow_writer.find_logged_model_id(client, run)) for run in runs] == [True, False]


@pytest.mark.parametrize("is_changed", [False, True])
def test_backfilled_run_has_no_model_of_changed_module(repository_with_models, monkeypatch, is_changed):
    parameters.PARAMS_FILE.write_text(f"model: served_net.net\nseeds: [0]\n{SMALL}")
    run = RunFiles(Path(), "sgd", 0)
    TrainRecord.from_training("completed", [EPOCH], [], [[1.0]], {"lr": "0.1"}, "a").write(run.training)
    EvalRecord(status="completed", test_loss=1.0, test_accuracy=0.5).write(run.test)
    Path("dvc.lock").write_text('{"stages": {}}')
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "record"]):
        subprocess.run(["git", *words], check=True)
    if is_changed:
        Path("custom/helper.py").write_text("WIDTH = 2\n")
    monkeypatch.setattr(Revision, "fetch_output", lambda *arguments: b"weights")
    assert list(maintenance.backfill_runs(Revision.parse("HEAD"))) == ["sgd-0: taken from HEAD, with its weights"]
    (log,) = event_log.list_logs()
    assert ("model" in [event["event"] for event in log.read_events()]) != is_changed


def test_study_loads_model_from_top_level_custom_folder(repository_with_models, monkeypatch):
    study = repository_with_models / "studies" / "mine"
    study.mkdir(parents=True)
    (study / parameters.PARAMS_FILE).write_text(f"model: alone.net\nseeds: [0]\n{SMALL}")
    (repository_with_models / "custom" / "alone.py").write_text(OWN.replace(", helper", ", PIL.Image"))
    monkeypatch.chdir(repository_with_models)
    model = models.build("alone.net", 0)
    weights.save_model(study / "weights.safetensors", model, "alone.net")
    sys.modules.pop("alone")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not each.startswith(str(repository_with_models))])
    monkeypatch.chdir(study)
    found = inference.load_model(Path("weights.safetensors"))
    assert Path.cwd() == study
    image = convert_to_input(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert torch.equal(found(image), model(image))


def test_retrained_champion_is_rejected(tmp_path):
    run = RunFiles(tmp_path, "adam", 0)
    known = {"status": "completed", "epochs": 1, "train_loss": 1.0, "validation_loss": 1.0, "history": []}
    known["step_losses"] = []
    TrainRecord(**known, validation_accuracy=0.5, weights_sha256="a").write(run.training)
    Champion(champion=run.id, chosen_by="validation_accuracy", validation_accuracy=0.5, test_accuracy=0.5).write(
        tmp_path / "reports" / "champion.json"
    )
    assert inference.find_champion(tmp_path) == (run.weights, "a")
    TrainRecord(**known, validation_accuracy=0.4, weights_sha256="b").write(run.training)
    with pytest.raises(RecordError, match=r"champion.json: adam-0 was trained again since it was chosen: run `dvc"):
        inference.find_champion(tmp_path)
