"""MLflow's pages, which open on the trainings: `mlflow server --app-name optlab`, as `optlab ui` runs it.

A browser that does not know MLflow yet opens its pages in the mode for language models, where the runs of a training
cannot be found, and shows a table without metrics. MLflow keeps the mode, and each table's columns, in the browser's
local storage, and has no setting for what is there at first. This app puts it there: what the user has chosen since,
stays. The keys are those of MLflow's sources, and not documented: where MLflow renames them, its pages open as they do
without this app.
"""

import json
import os
from pathlib import Path
from typing import Any

START_PAGE_VARIABLE = "OPTLAB_UI_START_PAGE"  # what the bare address leads to

_LOCAL_STORAGE_DEFAULTS = {
    "mlflow.workflowType_v1": "machine_learning",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,  # the panel of the assistant takes a third of the window
    "mlflow.telemetry.info.alert.dismissed_v1": True,  # `optlab ui` switches the telemetry off
}
_SCRIPT = """<script>
for (const [key, value] of Object.entries(%(once)s))
  if (localStorage.getItem(key) === null) localStorage.setItem(key, JSON.stringify(value));
for (const [id, state] of Object.entries(%(states)s)) {
  const shown = `optlab.view-${id}`;
  if (localStorage.getItem(shown) !== state) {
    localStorage.setItem(`MLflowLocalStorage-1.1-ExperimentPage-["${id}"]-ReactComponentState`, state);
    localStorage.setItem(shown, state);
  }
}
if (location.hash.length < 3) location.replace(%(start)s);
</script>"""


def create_app() -> Any:
    """Return MLflow's app with a start page that has that script."""
    from flask import Response, request
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app

    start = Path(str(pages.static_folder), "index.html").read_text("utf-8")

    @pages.before_request
    def show_start() -> Response | None:
        if request.path != "/":
            return None
        return Response(start.replace("<head>", f"<head>{_build_script()}", 1), headers={"Cache-Control": "no-store"})

    return app


def _build_script() -> str:
    values = {
        "once": _LOCAL_STORAGE_DEFAULTS,
        "states": _load_view_states(),
        "start": os.environ.get(START_PAGE_VARIABLE, "#/experiments"),
    }
    # No text of a tag can end the script.
    return _SCRIPT % {key: json.dumps(value).replace("<", "\\u003c") for key, value in values.items()}


def _load_view_states() -> dict[str, str]:
    """Experiment id → how its page of runs is to open, where a comparison has been shown in it."""
    from mlflow import MlflowClient

    from optlab.tracking import comparison_view, mlflow_store, sync_state

    found = MlflowClient(mlflow_store.get_tracking_uri()).search_experiments(
        filter_string=f"name LIKE '{sync_state.EXPERIMENT_PREFIX}%'"
    )
    return {
        each.experiment_id: comparison_view.decode_view_tag(each.tags[comparison_view.VIEW_TAG])
        for each in found
        if comparison_view.VIEW_TAG in each.tags
    }
