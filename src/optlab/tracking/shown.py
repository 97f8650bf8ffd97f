"""A finished comparison in MLflow: which runs belong to it, the champion, and the addresses to open.

Nothing here imports torch: the process that fills MLflow does it.
"""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from optlab.tracking import sending, server, summaries, view
from optlab.tracking.summaries import Summary

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTERED_MODEL = "optlab-cifar10"
CHAMPION = "champion"


class Shown(BaseModel):
    """What MLflow is to show of a comparison.

    Attributes:
        experiment: its name.
        runs: (id, SHA-256 of its weights) of each.
        champion: the id of the run whose model is to be registered; None where there is none.
        conditions: whether these differ between the runs, in a sentence.
        chosen_by: the figure that the table is sorted by.
        summaries: one for each optimizer.
        trials: one for each trial of the tunings.
    """

    model_config = ConfigDict(frozen=True)

    experiment: str
    runs: tuple[tuple[str, str], ...]
    champion: str | None
    conditions: str
    chosen_by: str
    summaries: tuple[Summary, ...]
    trials: tuple[Summary, ...] = ()


def show(shown: Shown) -> str:
    """Mark the comparison's runs in MLflow, which has them all, and return the addresses to open.

    Raises:
        Exception: whatever MLflow raises.
    """
    client = server.connect()
    experiment = server.experiment(client, shown.experiment)
    current = _mark_current(client, experiment, shown)
    if shown.champion in current:
        _register(client, current[shown.champion], shown.champion)
    _retire(client, experiment, current.get(shown.champion or ""))
    client.set_experiment_tag(experiment, view.TAG, view.state(shown.chosen_by))
    means = summaries.show(client, shown.experiment, shown.summaries, shown.chosen_by == "validation_accuracy")
    summaries.show_trials(client, shown.experiment, shown.trials)
    return _addresses(experiment, means)


def _mark_current(client: "MlflowClient", experiment: str, shown: Shown) -> dict[str, Any]:
    """Tag the runs of this comparison, and untag those of earlier ones; returns id of run → MLflow run."""
    logged = server.find_runs(client, experiment, list(shown.runs))
    found = {run: each for (run, _), each in zip(shown.runs, logged, strict=True) if each is not None}
    keep = {each.info.run_id for each in found.values()}
    for old in server.search_runs(client, experiment, "tags.comparison = 'current'"):
        if old.info.run_id not in keep:
            client.set_tag(old.info.run_id, "comparison", "earlier")
    for run_id in keep:
        client.set_tag(run_id, "comparison", "current")
        client.set_tag(run_id, "comparison.conditions", shown.conditions)
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


def _retire(client: "MlflowClient", experiment: str, champion: Any) -> None:
    """Take the alias from any other run of this experiment than the champion; another pipeline's keeps it."""
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        return
    version = client.get_registered_model(REGISTERED_MODEL).aliases.get(CHAMPION)
    run_id = client.get_model_version(REGISTERED_MODEL, version).run_id if version else None
    if not run_id or (champion and champion.info.run_id == run_id):
        return
    if client.get_run(run_id).info.experiment_id == experiment:
        client.delete_registered_model_alias(REGISTERED_MODEL, CHAMPION)


def _addresses(trainings: str, means: str) -> str:
    shown = f"viewStateShareKey={view.NAME}&workflowType=machine_learning"
    table, bands = (f"{server.ui_url()}/#/experiments/{experiment}/runs?" for experiment in (trainings, means))
    start = "Run `mlflow ui` here, then open" if server.is_local() else "Open"
    return (
        f"{start}\n"
        f"  the means in their bands  {bands}compareRunsMode=CHART&{shown}\n"
        f"  the curve of every run    {table}compareRunsMode=CHART&{shown}\n"
        f"  the table of all runs     {table}{shown}"
    )
