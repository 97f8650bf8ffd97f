"""View of a finished comparison in MLflow: tags on its runs, the champion, summary runs, and how MLflow's pages open.

Summary runs have the means over an optimizer's seeds, or one trial of a tuning, in experiments of their own, so that
nothing that counts, groups or filters trainings meets them. The state of the pages is that of MLflow's page of runs,
which reads it from an experiment's tag and lists it under "Views" (`ExperimentPageUIState` in its sources); it is not
documented. Views are kept in a file until the store shows them: it can be away, full, or replaced by another one.
Nothing here imports torch, for the uploader daemon imports it.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from optlab.system import files, repository
from optlab.system.errors import StorageError
from optlab.tracking import mlflow_store, mlflow_writer
from optlab.tracking.event_log import get_current_time_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient

COMPARISON_FOLDER = Path(".optlab") / "comparisons"
REGISTERED_MODEL = "optlab-cifar10"
CHAMPION_ALIAS = "champion"
VIEW_NAME = "comparison"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_NAME}"
DESCRIPTION_TAG = "mlflow.note.content"
LOCAL_UI_HINT = '`optlab ui` (or `mlflow ui`, then "Model training", top left)'
SUMMARY_TAG = "summary"  # unfinished, current, or earlier; no training has it

_DIGEST_TAG = "summary.digest"
_REPORT_TAG = "report.md5"
_UNFINISHED = "unfinished"
_MAX_BUILD_MS = 3_600_000  # age up to which an unfinished summary run may still be under construction

# Descriptions in Markdown; MLflow's pages show the first line of a folded one.
TRAINING_DESCRIPTION = """\
One run for each optimizer and seed; the verdict is in `{report}`.

**Metrics**; losses are mean cross entropies in nats, accuracies are fractions:

- `step/…`, by the number of steps: `loss` of each batch; `validation_loss`, `validation_accuracy` of each validation.
- `epoch/…`, by the number of epochs: `train_loss`, the mean over the images as they were trained on; `running_loss`, \
the tutorial's sum over the batches; `validation_loss` and `validation_accuracy` after the epoch.
- `test/…` and `test_class_accuracy/…`: once, of the final weights on the test split.
- `training/…`: gradients and images per second of each epoch, and the learning rate where it changes. Earlier runs \
have these under `epoch/…`.

**Parameters**: `optimizer`, its name in params.yaml; `optimizer.…`, its hyperparameters, defaults included; `seed`; \
`data.…`, `training.…` and `schedule.…` as in params.yaml.

**Tags**: `comparison` is `current` for the runs of the present comparison, which the table shows, `earlier` for those \
of former ones; `status` is running, completed, diverged, failed or interrupted; `weights.sha256`, `git.commit` \
and `conditions.…` say which weights came out, of which revision, on which machine.

MLflow's metrics, except the losses of single steps, are rounded to four decimals; \
`runs/*/train.json` and `test.json` have all digits.
"""

SUMMARY_DESCRIPTION = """\
The means over the seeds of `{trainings}`; their bands and the verdicts are in `{report}`, which is an artifact of \
{first}'s run here, too.

One run for each optimizer. `…/mean`, by the number of steps, with the ends of its 95 % confidence interval, `…/lower` \
and `…/upper`. MLflow cannot fill the area between two lines: the report shows the intervals as bands.
"""

TRIAL_DESCRIPTION = """\
The trials of the tunings of `{trainings}`: the charts' parallel coordinates compare their values.

One run for each trial. `validation/…` by the number of steps. The tag `search` is the seed whose search the trial \
belongs to, or 0 if one search chooses for all seeds; `trial` is its number; `chosen` is `yes` for the trial that its \
search chose.
"""

_PINNED_COLUMNS = {"attributes.`Run Name`": 130, "runDateAndNestInfo": 140}  # MLflow has them before all others
_METRICS_WITH_VALIDATION = ("step/validation_accuracy", "step/validation_loss", "step/loss")
_METRICS_WITHOUT_VALIDATION = ("epoch/train_loss", "epoch/running_loss")
_SMOOTHING = {"step/loss": 90}  # of 100
_METRICS_WITHOUT_POINTS = ("train_loss/mean",)  # 50 points, which hide the line
_SECTIONS = ("comparison", "step", "epoch", "test", "test_class_accuracy", "training", "System metrics")
_MAX_CHART_RUNS = 100  # drawn by one chart


class SummaryRun(BaseModel):
    """Curves of one optimizer over its seeds, or of one of its trials.

    The order and the names of the fields decide `digest`, which MLflow has.

    Attributes:
        optimizer: name in params.yaml.
        colour: of the lines.
        params: parameters to show in the table.
        points: (metric, value, step) of each point.
        run: name of the run in MLflow; the optimizer's name if empty.
        tags: to filter and group by.
        source: program that has made the run.
    """

    model_config = ConfigDict(frozen=True)

    optimizer: str
    colour: str
    params: dict[str, str]
    points: tuple[tuple[str, float, int], ...]
    run: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    source: str = "pipeline/compare.py"

    @property
    def digest(self) -> str:
        """SHA-256 of all fields."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class ComparisonView(BaseModel):
    """Content that MLflow shows of a comparison.

    Attributes:
        experiment: name of the experiment.
        runs: (id, SHA-256 of the weights) of each run.
        champion: id of the run whose model is to be registered; None if there is none.
        conditions: sentence on whether the environments of the runs differ.
        chosen_by: metric that chooses the champion.
        summaries: one for each optimizer.
        trials: one for each trial of the tunings.
        report: path of the page with the verdicts.
        colours: run id → colour, which another comparison may have set otherwise.
    """

    model_config = ConfigDict(frozen=True)

    experiment: str
    runs: tuple[tuple[str, str], ...]
    champion: str | None
    conditions: str
    chosen_by: str
    summaries: tuple[SummaryRun, ...]
    trials: tuple[SummaryRun, ...] = ()
    report: str = "reports/report.html"
    colours: dict[str, str] = Field(default_factory=dict)


class ComparisonSyncState(BaseModel):
    """Last comparison of a pipeline, as it is kept until a store shows it.

    Attributes:
        shown: the comparison.
        store: id of the store that shows it; empty while none does.
    """

    shown: ComparisonView
    store: str = ""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the state in a file; None for a missing or damaged one, which the next comparison replaces."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None

    def is_current(self) -> bool:
        """Return whether the present store shows the comparison.

        Raises:
            Exception: whatever MLflow raises if it cannot be reached.
        """
        return bool(self.store) and self.store == mlflow_store.get_store_id(self.shown.experiment)

    def write(self) -> bool:
        """Write the state, and return whether there was room: on a full disk, `optlab show` still shows it."""
        try:
            files.write_atomic(get_state_path(self.shown.experiment), self.model_dump_json().encode())
        except StorageError:
            return False
        return True


def get_state_path(experiment: str) -> Path:
    """Return the file with the last comparison of an experiment."""
    return repository.get_state_root() / COMPARISON_FOLDER / f"{experiment}.json"


def is_shown(experiment: str) -> bool:
    """Return whether the present store shows the saved comparison of an experiment; False without one.

    Raises:
        Exception: whatever MLflow raises if it cannot be reached.
    """
    state = ComparisonSyncState.read(get_state_path(experiment))
    return state is not None and state.is_current()


def update_saved_view(experiment: str) -> str:
    """Show the saved comparison of an experiment; return a message with the addresses to open.

    Raises:
        Exception: whatever MLflow raises; StorageError if there is no saved comparison.
    """
    state = ComparisonSyncState.read(get_state_path(experiment))
    if state is None:
        raise StorageError(f"{get_state_path(experiment)} cannot be read")
    return update_view(state.shown)


def update_outdated_views() -> Iterator[str]:
    """Show each saved comparison that the present store does not show; yield the names of their experiments.

    Raises:
        Exception: whatever MLflow raises.
    """
    for path in sorted((repository.get_state_root() / COMPARISON_FOLDER).glob("*.json")):
        state = ComparisonSyncState.read(path)
        if state and not state.is_current():
            update_view(state.shown)
            yield state.shown.experiment


def update_view(comparison: ComparisonView) -> str:
    """Show a comparison whose runs MLflow has, and save which store shows it; return a message with the addresses.

    Raises:
        Exception: whatever MLflow raises.
    """
    message = update_comparison(comparison)
    ComparisonSyncState(shown=comparison, store=mlflow_store.get_store_id(comparison.experiment)).write()
    return message


def update_comparison(comparison: ComparisonView) -> str:
    """Tag the comparison's runs in MLflow, and update everything that belongs to it; return a message with addresses.

    Raises:
        Exception: whatever MLflow raises.
    """
    client = mlflow_store.connect()
    experiment = mlflow_store.get_or_create_experiment(client, comparison.experiment)
    current_runs = _tag_current_runs(client, experiment, comparison)
    mlflow_writer.fill_model_metrics(client, experiment, {each.info.run_id for each in current_runs.values()})
    champion = current_runs.get(comparison.champion or "")
    registered = champion is not None and _register_champion(client, champion, str(comparison.champion))
    _remove_stale_alias(client, experiment, champion if registered else None)
    client.set_experiment_tag(experiment, VIEW_TAG, encode_view_tag(build_runs_state(comparison.chosen_by)))
    if not client.get_experiment(experiment).tags.get(DESCRIPTION_TAG):  # a person may have written one
        client.set_experiment_tag(experiment, DESCRIPTION_TAG, TRAINING_DESCRIPTION.format(report=comparison.report))
    has_validation = comparison.chosen_by == "validation_accuracy"
    summary_experiment = update_summary_runs(
        client, comparison.experiment, comparison.summaries, has_validation, comparison.report
    )
    update_trial_runs(client, comparison.experiment, comparison.trials)
    deleted = ", ".join(run for run, _ in comparison.runs if run not in current_runs)
    remedy = "restore them there, or run `optlab sync --from HEAD` once this record is committed"
    has = f"MLflow has all runs but {deleted}, deleted there: {remedy}" if deleted else "MLflow has all runs"
    if mlflow_store.is_local():  # with no server running, addresses would lead nowhere
        return f"{has}{'. ' if deleted else ': '}{LOCAL_UI_HINT} opens its pages"
    urls = build_page_urls(mlflow_store.get_ui_url(), experiment, summary_experiment)
    return f"{has}{'.' if deleted else ':'}\n{format_page_urls(urls)}"


def _tag_current_runs(client: "MlflowClient", experiment: str, comparison: ComparisonView) -> dict[str, Any]:
    """Tag the runs of this comparison, and untag those of earlier ones; return run id → MLflow run."""
    logged = mlflow_store.find_runs(client, experiment, list(comparison.runs))
    current = {run: each for (run, _), each in zip(comparison.runs, logged, strict=True) if each is not None}
    keep = {each.info.run_id for each in current.values()}
    for old in mlflow_store.search_runs(client, experiment, "tags.comparison = 'current'"):
        if old.info.run_id not in keep:
            client.set_tag(old.info.run_id, "comparison", "earlier")
    for run_id in keep:
        client.set_tag(run_id, "comparison", "current")
        client.set_tag(run_id, "comparison.conditions", comparison.conditions)
    for run, colour in comparison.colours.items():
        if run in current and current[run].data.tags.get("mlflow.runColor") != colour:
            client.set_tag(current[run].info.run_id, "mlflow.runColor", colour)
    return current


def _register_champion(client: "MlflowClient", run: Any, run_id: str) -> bool:
    """Give the champion's logged model the alias, if it has one; a registered model gets no second version."""
    model_id = mlflow_writer.find_logged_model_id(client, run.info.run_id)
    if model_id is None or _get_or_none(client.get_logged_model, model_id) is None:
        return False
    source = f"models:/{model_id}"  # MLflow returns versions without their `model_id`
    known = [each for each in client.search_model_versions(f"name = '{REGISTERED_MODEL}'") if each.source == source]
    if not known:
        if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
            client.create_registered_model(REGISTERED_MODEL, description="The best run of the current comparison.")
        tags = {"run": run_id}
        known = [client.create_model_version(REGISTERED_MODEL, source, run.info.run_id, tags, model_id=model_id)]
    version = max(int(each.version) for each in known)  # earlier versions of this program made one at every call
    client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION_ALIAS, str(version))
    # The page of models shows the registered ones by this tag, which MLflow's own `register_model` sets.
    listed = json.dumps([{"name": REGISTERED_MODEL, "version": str(version)}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": listed})
    return True


def _remove_stale_alias(client: "MlflowClient", experiment: str, champion: Any) -> None:
    """Remove the alias from an erased run, and from any run of this experiment but the champion."""
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        return
    version = client.get_registered_model(REGISTERED_MODEL).aliases.get(CHAMPION_ALIAS)
    run_id = client.get_model_version(REGISTERED_MODEL, version).run_id if version else None
    if not run_id or (champion and champion.info.run_id == run_id):
        return
    run = _get_or_none(client.get_run, run_id)
    if run is None or run.info.experiment_id == experiment:
        _remove_alias(client)


def _remove_alias(client: "MlflowClient") -> None:
    """Remove the alias, unless it is not permitted: on a server with logins, this takes more than to set it."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_registered_model_alias(REGISTERED_MODEL, CHAMPION_ALIAS)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise


def _get_or_none(get: Callable[[str], Any], key: str) -> Any:
    """Return MLflow's object with that key; None if a person has deleted it there and `mlflow gc` has erased it."""
    from mlflow.exceptions import MlflowException

    try:
        return get(key)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def get_summary_experiment_name(training_experiment: str) -> str:
    """Return the name of the experiment with the summaries of that one."""
    return f"{training_experiment}.summary"  # a folder's experiment is named with a hyphen


def update_summary_runs(client: "MlflowClient", training_experiment: str, summaries: tuple[SummaryRun, ...],
                        has_validation: bool, report: str = "reports/report.html") -> str:  # fmt: skip
    """Update the experiment of the means over the seeds, so that each summary is there once; return its id.

    Metrics of a run can only be added to: a summary that has changed is deleted, and created anew.

    Args:
        training_experiment: name of the experiment with the trainings.
        has_validation: whether there is a validation split.
        report: path of the page that has the bands.

    Raises:
        Exception: whatever MLflow raises.
    """
    experiment_id = mlflow_store.get_or_create_experiment(client, get_summary_experiment_name(training_experiment))
    _sync_runs(client, experiment_id, summaries)
    state = build_summaries_state(SUMMARY_TAG, has_validation)
    client.set_experiment_tag(experiment_id, VIEW_TAG, encode_view_tag(state))
    first = summaries[0].optimizer if summaries else "the first optimizer"
    text = SUMMARY_DESCRIPTION.format(trainings=training_experiment, report=report, first=first)
    client.set_experiment_tag(experiment_id, DESCRIPTION_TAG, text)
    if summaries:
        _log_report(client, experiment_id, summaries[0], Path(report))
    return experiment_id


def _log_report(client: "MlflowClient", experiment_id: str, summary: SummaryRun, report: Path) -> None:
    """Make the report an artifact of a summary's run, where it is not one already."""
    from mlflow.exceptions import MlflowException

    if not report.is_file():
        return
    digest = files.compute_md5(report)
    condition = f"tags.{SUMMARY_TAG} = 'current' AND tags.`{_DIGEST_TAG}` = '{summary.digest}'"
    for run in mlflow_store.search_runs(client, experiment_id, condition):
        if run.data.tags.get(_REPORT_TAG) != digest:
            with contextlib.suppress(MlflowException):  # on a server with a login, only its creator may
                client.log_artifact(run.info.run_id, str(report))
                client.set_tag(run.info.run_id, _REPORT_TAG, digest)


def update_trial_runs(client: "MlflowClient", training_experiment: str, trials: tuple[SummaryRun, ...]) -> None:
    """Update the experiment of a comparison's tunings, as `update_summary_runs` does; do nothing without trials.

    Raises:
        Exception: whatever MLflow raises.
    """
    if not trials:
        return
    experiment_id = mlflow_store.get_or_create_experiment(client, f"{training_experiment}-tuning")
    _sync_runs(client, experiment_id, trials)
    sampled_params = [set(each.params) for each in trials if each.tags.get("trial") != "default"]
    common = set.intersection(*sampled_params) - {"class"} if sampled_params else set()
    state = build_trials_state(SUMMARY_TAG, sorted(common))
    client.set_experiment_tag(experiment_id, VIEW_TAG, encode_view_tag(state))
    text = TRIAL_DESCRIPTION.format(trainings=training_experiment)
    client.set_experiment_tag(experiment_id, DESCRIPTION_TAG, text)


def _sync_runs(client: "MlflowClient", experiment_id: str, wanted: tuple[SummaryRun, ...]) -> None:
    with FileLock(Path(".optlab") / "summaries.lock"):
        missing = _delete_outdated_and_list_missing(client, experiment_id, wanted)
        for each in missing:
            _create_run(client, experiment_id, each)
        if missing:  # another machine may have made the same ones meanwhile
            _delete_outdated_and_list_missing(client, experiment_id, wanted)
        _delete_unfinished(client, experiment_id)


def _delete_outdated_and_list_missing(
    client: "MlflowClient", experiment_id: str, summaries: tuple[SummaryRun, ...]
) -> list[SummaryRun]:
    """Delete the current runs that are not wanted, and of equal ones all but the first; return the missing ones."""
    wanted = {each.digest: each for each in summaries}
    for run in mlflow_store.search_runs(client, experiment_id, f"tags.{SUMMARY_TAG} = 'current'", ["start_time ASC"]):
        if wanted.pop(run.data.tags.get(_DIGEST_TAG, ""), None) is None:
            _delete_run(client, run.info.run_id)
    return list(wanted.values())


def _delete_unfinished(client: "MlflowClient", experiment_id: str) -> None:
    """Delete the runs that a kill has left unfinished."""
    oldest_ms = get_current_time_ms() - _MAX_BUILD_MS
    condition = f"tags.{SUMMARY_TAG} = '{_UNFINISHED}' AND attributes.start_time < {oldest_ms}"
    for run in mlflow_store.search_runs(client, experiment_id, condition):
        _delete_run(client, run.info.run_id)


def _delete_run(client: "MlflowClient", run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_run(run_id)
    except MlflowException:  # on a server with a login, only its creator may
        with contextlib.suppress(MlflowException):  # another machine has removed it meanwhile
            client.set_tag(run_id, SUMMARY_TAG, "earlier")


def _create_run(client: "MlflowClient", experiment_id: str, summary: SummaryRun) -> None:
    """Create a summary run; its last call makes it a current one."""
    from mlflow.entities import Metric, Param, RunTag

    start_ms = get_current_time_ms()
    tags = {SUMMARY_TAG: _UNFINISHED, "mlflow.runColor": summary.colour, "mlflow.source.name": summary.source}
    run = client.create_run(experiment_id, start_ms, tags | summary.tags, run_name=summary.run or summary.optimizer)
    run_id = run.info.run_id
    refused: mlflow_writer.RefusedItems = []  # complete among the artifacts
    params = [Param(key, value) for key, value in summary.params.items()]
    mlflow_writer.log_entities(client, run_id, "params", params, refused)
    metrics = [Metric(key, value, start_ms, step) for key, value, step in summary.points]
    mlflow_writer.log_entities(client, run_id, "metrics", metrics, refused)
    client.set_terminated(run_id, "FINISHED", get_current_time_ms())
    client.log_batch(run_id, tags=[RunTag(_DIGEST_TAG, summary.digest), RunTag(SUMMARY_TAG, "current")])


def find_page_urls(client: "MlflowClient", name: str, url: str, preconfigured: bool) -> dict[str, str]:
    """Return title → address of the pages of the experiment of that name; none if no comparison has been shown.

    Args:
        preconfigured: as for `build_page_urls`.

    Raises:
        Exception: whatever MLflow raises.
    """
    trainings, means = (client.get_experiment_by_name(each) for each in (name, get_summary_experiment_name(name)))
    if trainings is None or VIEW_TAG not in trainings.tags:
        return {}
    return build_page_urls(url, trainings.experiment_id, means.experiment_id if means else None, preconfigured)


def build_page_urls(
    url: str, training_experiment: str, summary_experiment: str | None, preconfigured: bool = False
) -> dict[str, str]:
    """Return title → address of the pages of a server's experiments with these ids.

    Args:
        preconfigured: whether the server's pages open with the view by themselves; for others, the address names it,
            and the page says that it is shared.
    """
    view_query = "" if preconfigured else f"viewStateShareKey={VIEW_NAME}&workflowType=machine_learning"
    runs = f"{url}/#/experiments/{training_experiment}/runs"
    charts = f"compareRunsMode=CHART{'&' if view_query else ''}{view_query}"
    urls = {"the curve of every run": f"{runs}?{charts}", "the table of all runs": f"{runs}?{view_query}".rstrip("?")}
    if summary_experiment is not None:
        urls["the means over the seeds"] = f"{url}/#/experiments/{summary_experiment}/runs?{charts}"
    return urls


def format_page_urls(urls: dict[str, str]) -> str:
    """Return one line for each page."""
    width = max(map(len, urls))
    return "\n".join(f"  {title:{width}}  {address}" for title, address in urls.items())


def encode_view_tag(state: str) -> str:
    """Return the value of `VIEW_TAG` for a state of the page."""
    now = get_current_time_ms()
    return json.dumps({"name": VIEW_NAME.capitalize(), "createdAt": now, "updatedAt": now, "state": state})


def decode_view_tag(tag_value: str) -> str:
    """Return the state in a value of `VIEW_TAG`; older versions wrote the state alone."""
    return str(json.loads(tag_value).get("state", tag_value))


def build_runs_state(selection_metric: str) -> str:
    """Return the page's state for a comparison whose champion is chosen by that metric.

    The table is sorted by what the verdict is about: test accuracy, or training loss without a validation split.
    """
    has_validation = selection_metric == "validation_accuracy"
    line_metrics = _METRICS_WITH_VALIDATION if has_validation else _METRICS_WITHOUT_VALIDATION
    columns = {
        "params.`optimizer`": 100, "params.`optimizer.lr`": 100, "metrics.`test/accuracy`": 110,
        f"metrics.`epoch/{selection_metric}`": 190 if has_validation else 140, "params.`seed`": 70,
        "params.`optimizer.class`": 130, "tags.`status`": 100, "params.`optimizer.weight_decay`": 190,
        "metrics.`test/loss`": 90, "metrics.`test/expected_calibration_error`": 260,
    }  # fmt: skip
    return _build_state(
        columns, "test/accuracy" if has_validation else "epoch/train_loss", ascending=not has_validation,
        filter_tag="comparison", sections=_SECTIONS,
        charts=[*(_build_line_chart(metric) for metric in line_metrics), _build_chart("BAR", "test/accuracy")],
    )  # fmt: skip


def build_summaries_state(tag: str, has_validation: bool) -> str:
    """Return the page's state for the means over the seeds, whose runs have that tag.

    The ends of the intervals are columns of the table: MLflow cannot fill the area between two lines.
    """
    metrics = [*(("validation_accuracy", "validation_loss") if has_validation else ()), "train_loss"]
    columns = {
        "metrics.`test_accuracy/mean`": 170, "metrics.`test_accuracy/lower`": 170, "metrics.`test_accuracy/upper`": 170,
        "params.`class`": 130, "params.`seeds`": 130, "params.`status`": 100,
    }  # fmt: skip
    order = "test_accuracy/mean" if has_validation else "train_loss/mean"
    charts = [*(_build_line_chart(f"{each}/mean") for each in metrics), _build_chart("BAR", "test_accuracy/mean")]
    sections = (_SECTIONS[0], *metrics, "test_accuracy")
    return _build_state(columns, order, ascending=not has_validation, filter_tag=tag, sections=sections, charts=charts)


def build_trials_state(tag: str, params: Sequence[str]) -> str:
    """Return the page's state for trials; parallel coordinates show which values go with which accuracy.

    Args:
        tag: of the trials' runs.
        params: those that every drawn trial has: MLflow leaves out of the coordinates whatever lacks one.
    """
    columns = {
        "params.`optimizer`": 100, "params.`lr`": 110, "metrics.`validation/accuracy`": 160,
        "metrics.`validation/loss`": 130, "tags.`steps`": 70, "tags.`chosen`": 70, "tags.`trial`": 70,
        "tags.`status`": 100,
    }  # fmt: skip
    coordinates = {"selectedParams": list(params), "selectedMetrics": ["validation/accuracy"], "showAllRuns": True}
    charts = [_build_chart("PARALLEL", "validation/accuracy") | coordinates, _build_line_chart("validation/accuracy")]
    charts[0]["uuid"] = "coordinates"
    return _build_state(
        columns, "validation/accuracy", ascending=False, filter_tag=tag, sections=_SECTIONS[:1], charts=charts
    )


def _build_state(columns: dict[str, int], order: str, *, ascending: bool, filter_tag: str, sections: Iterable[str],
                 charts: list[dict[str, Any]]) -> str:  # fmt: skip
    widths = _PINNED_COLUMNS | columns
    return json.dumps({
        "selectedColumns": list(columns), "columnOrder": list(widths), "columnWidths": widths,
        "orderByKey": f"metrics.`{order}`", "orderByAsc": ascending, "searchFilter": f"tags.{filter_tag} = 'current'",
        "compareRunCharts": charts, "compareRunSections": _build_sections(sections), "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
    })  # fmt: skip


def _build_sections(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the sections of charts; the first is shown in two columns."""
    sections: list[dict[str, Any]] = [
        {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": True}
        for name in names
    ]
    sections[0]["columns"] = 2
    return sections


def _build_line_chart(metric: str) -> dict[str, Any]:
    """Return a chart of a metric by MLflow's step, which can be an epoch."""
    point_options = {"displayPoints": False} if metric in _METRICS_WITHOUT_POINTS else {}
    return _build_chart("LINE", metric) | point_options | {
        "selectedMetricKeys": [metric], "xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear",
        "scaleType": "linear", "range": {}, "yAxisKey": "metric", "yAxisExpressions": [],
        "lineSmoothness": _SMOOTHING.get(metric, 0), "ignoreOutliers": False, "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": metric not in _SMOOTHING,
    }  # fmt: skip


def _build_chart(kind: str, metric: str) -> dict[str, Any]:
    return {
        "uuid": metric, "type": kind, "metricSectionId": _SECTIONS[0], "metricKey": metric, "isGenerated": True,
        "deleted": False, "runsCountToCompare": _MAX_CHART_RUNS,
    }  # fmt: skip
