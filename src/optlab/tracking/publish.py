"""What MLflow shows of a comparison: which runs belong to it, the champion, and the addresses to open."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from optlab.results import origin
from optlab.results.comparison import Comparison
from optlab.system import git, repository
from optlab.system.errors import one_line
from optlab.tracking import facts, journal, replay, sending, server, view
from optlab.tracking.facts import experiment as experiment_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTERED_MODEL = "optlab-cifar10"
CHAMPION = "champion"
_AWAY = "MLflow was not reached: the reports are complete, and `optlab sync` sends the runs later."


def publish(compared: Comparison, folder: Path) -> str:
    """Bring MLflow up to date and return what to tell the user; trouble with a server is a warning."""
    name = experiment_name(folder)
    try:
        _complete(compared)
        if repository.is_copy():
            # DVC commits what is tracked and what the stages declare: a new run's conditions are neither.
            git.ask("add", "--", *(str(run.files.conditions) for run in compared.runs if run.conditions))
        if not replay.push_pending():
            return _AWAY
        if repository.is_copy():  # it is not the comparison that the repository stands at
            return f"In MLflow: filter with  tags.`dvc.exp.name` = '{repository.experiment()}'"
        client = server.connect()
        experiment = server.experiment(client, name)
        current = _mark_current(client, experiment, compared)
        if compared.champion is not None and compared.config.data.train_split == "train":
            run = current.get(compared.champion.files.id)
            if run is not None:
                _register(client, run, compared.champion.files.id)
        client.set_experiment_tag(experiment, view.TAG, view.state(compared.chosen_by))
    except Exception as error:
        print(f"warning: MLflow at {server.uri()}: {one_line(error)[:200]}", file=sys.stderr)
        return _AWAY
    return _addresses(experiment, [run.info.run_id for run in current.values()])


def _complete(compared: Comparison) -> None:
    """Evaluate in the journal what was trained once more with the same weights: DVC runs no second evaluation then."""
    for run in compared.runs:
        log = journal.find(run.files.id, run.trained.weights_sha256)
        if log is not None and log.summary().is_ours(run.files.id) and not log.evaluated:
            weights = run.files.weights if run.files.weights.exists() else None
            facts.evaluation(log, run.files.id, weights, run.trained, run.tested, compared.config.model)


def _mark_current(client: "MlflowClient", experiment: str, compared: Comparison) -> dict[str, Any]:
    """Tag the runs of this comparison, and untag those of earlier ones; returns id of run → MLflow run."""
    wanted = [(run.files.id, run.trained.weights_sha256) for run in compared.runs]
    found = {
        run.files.id: logged
        for run, logged in zip(compared.runs, server.find_runs(client, experiment, wanted), strict=True)
        if logged is not None
    }
    keep = {logged.info.run_id for logged in found.values()}
    for old in client.search_runs([experiment], "tags.comparison = 'current'"):
        if old.info.run_id not in keep:
            client.set_tag(old.info.run_id, "comparison", "earlier")
    conditions = origin.sentence(compared.mixture) if compared.mixture else "the same for all runs"
    for run_id in keep:
        client.set_tag(run_id, "comparison", "current")
        client.set_tag(run_id, "comparison.conditions", conditions)
    return found


def _register(client: "MlflowClient", run: Any, run_id: str) -> None:
    """Give the champion's logged model the alias; a model that is registered already gets no second version."""
    model_id = sending.logged_model(client, run.info.run_id)
    if model_id is None:
        return
    versions = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    known = next((version for version in versions if version.model_id == model_id), None)
    if known is None:
        if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
            client.create_registered_model(REGISTERED_MODEL, description="The best run of the current comparison.")
        known = client.create_model_version(
            REGISTERED_MODEL, f"models:/{model_id}", run.info.run_id, {"run": run_id}, model_id=model_id
        )
    client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, known.version)


def _addresses(experiment: str, run_ids: list[str]) -> str:
    top = f"{server.ui_url()}/#"
    base = f"{top}/experiments/{experiment}/runs"
    runs = quote(json.dumps(run_ids, separators=(",", ":")))
    shown = f"viewStateShareKey={view.NAME}&workflowType=machine_learning"
    start = "Run `mlflow ui` here, then open" if server.is_local() else "Open"
    return (
        f"{start}\n"
        f"  the sorted table  {base}?{shown}\n"
        f"  the charts        {base}?compareRunsMode=CHART&{shown}\n"
        f"  side by side      {top}/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment]))}"
    )
