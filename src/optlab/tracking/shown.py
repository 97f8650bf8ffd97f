"""A finished comparison in MLflow: which runs belong to it, the champion, and the addresses to open.

Nothing here imports torch: the process that fills MLflow does it.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from optlab.tracking import descriptions, sending, server, summaries, view
from optlab.tracking.summaries import Summary

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTERED_MODEL = "optlab-cifar10"
CHAMPION = "champion"
LOCAL = '`optlab ui` (or `mlflow ui`, then "Model training", top left)'


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
        report: the path of the page with the verdicts.
        colours: of each run, by its id: another comparison may have given it another one.
    """

    model_config = ConfigDict(frozen=True)

    experiment: str
    runs: tuple[tuple[str, str], ...]
    champion: str | None
    conditions: str
    chosen_by: str
    summaries: tuple[Summary, ...]
    trials: tuple[Summary, ...] = ()
    report: str = "reports/report.html"
    colours: dict[str, str] = Field(default_factory=dict)


def show(shown: Shown) -> str:
    """Mark the comparison's runs in MLflow, which has them all, and return where to look.

    Raises:
        Exception: whatever MLflow raises.
    """
    client = server.connect()
    experiment = server.experiment(client, shown.experiment)
    current = _mark_current(client, experiment, shown)
    sending.describe_models(client, experiment, {each.info.run_id for each in current.values()})
    champion = current.get(shown.champion or "")
    registered = champion is not None and _register(client, champion, str(shown.champion))
    _retire(client, experiment, champion if registered else None)
    client.set_experiment_tag(experiment, view.TAG, view.saved(view.runs(shown.chosen_by)))
    if not client.get_experiment(experiment).tags.get(descriptions.TAG):  # a person may have written one
        client.set_experiment_tag(experiment, descriptions.TAG, descriptions.TRAININGS.format(report=shown.report))
    validated = shown.chosen_by == "validation_accuracy"
    means = summaries.show(client, shown.experiment, shown.summaries, validated, shown.report)
    summaries.show_trials(client, shown.experiment, shown.trials)
    deleted = ", ".join(run for run, _ in shown.runs if run not in current)
    remedy = "restore them there, or run `optlab sync --from HEAD` once this record is committed"
    has = f"MLflow has all runs but {deleted}, deleted there: {remedy}" if deleted else "MLflow has all runs"
    if server.is_local():  # with no server running, addresses would lead nowhere
        return f"{has}{'. ' if deleted else ': '}{LOCAL} opens its pages"
    return f"{has}{'.' if deleted else ':'}\n{listed(view.addresses(server.ui_url(), experiment, means))}"


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
    for run, colour in shown.colours.items():
        if run in found and found[run].data.tags.get("mlflow.runColor") != colour:
            client.set_tag(found[run].info.run_id, "mlflow.runColor", colour)
    return found


def _register(client: "MlflowClient", run: Any, run_id: str) -> bool:
    """Give the champion's logged model the alias, if it has one; a model that is registered gets no second version."""
    model_id = sending.logged_model(client, run.info.run_id)
    if model_id is None or _find(client.get_logged_model, model_id) is None:
        return False
    source = f"models:/{model_id}"  # MLflow returns versions without their `model_id`
    known = [each for each in client.search_model_versions(f"name = '{REGISTERED_MODEL}'") if each.source == source]
    if not known:
        if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
            client.create_registered_model(REGISTERED_MODEL, description="The best run of the current comparison.")
        tags = {"run": run_id}
        known = [client.create_model_version(REGISTERED_MODEL, source, run.info.run_id, tags, model_id=model_id)]
    version = max(int(each.version) for each in known)  # earlier versions of this program made one at every call
    client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, str(version))
    # The page of models shows what is registered by this tag, which MLflow's own `register_model` sets.
    listed = json.dumps([{"name": REGISTERED_MODEL, "version": str(version)}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": listed})
    return True


def _find(get: Callable[[str], Any], key: str) -> Any:
    """Return what MLflow has under a key, or None: a person may have deleted it there, and `mlflow gc` erased it."""
    from mlflow.exceptions import MlflowException

    try:
        return get(key)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def addresses(client: "MlflowClient", name: str, url: str, prepared: bool) -> dict[str, str]:
    """Title → address of the pages that show the experiment of that name; none where no comparison has been shown.

    Args:
        prepared: as for `view.addresses`.

    Raises:
        Exception: whatever MLflow raises.
    """
    trainings, means = (client.get_experiment_by_name(each) for each in (name, summaries.experiment(name)))
    if trainings is None or view.TAG not in trainings.tags:
        return {}
    return view.addresses(url, trainings.experiment_id, means.experiment_id if means else None, prepared)


def listed(addresses: dict[str, str]) -> str:
    """One line for each."""
    width = max(map(len, addresses))
    return "\n".join(f"  {title:{width}}  {address}" for title, address in addresses.items())


def _retire(client: "MlflowClient", experiment: str, champion: Any) -> None:
    """Take the alias from any other run of this experiment than the champion, and from an erased run.

    Another pipeline's keeps it.
    """
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        return
    version = client.get_registered_model(REGISTERED_MODEL).aliases.get(CHAMPION)
    run_id = client.get_model_version(REGISTERED_MODEL, version).run_id if version else None
    if not run_id or (champion and champion.info.run_id == run_id):
        return
    run = _find(client.get_run, run_id)
    if run is None or run.info.experiment_id == experiment:
        client.delete_registered_model_alias(REGISTERED_MODEL, CHAMPION)
