"""How MLflow's pages open: the table's columns, order and filter, and which charts come first.

The shape is that of the state of MLflow's page of runs (`ExperimentPageUIState` in its sources), which it reads from an
experiment's tag and lists under "Views"; it is not documented.
"""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

NAME = "comparison"
TAG = f"mlflow.sharedViewState.{NAME}"

_PINNED = {"attributes.`Run Name`": 130, "runDateAndNestInfo": 140}  # MLflow has them before all others
_VALIDATED = ("step/validation_accuracy", "step/validation_loss", "step/loss")
_NOT_VALIDATED = ("epoch/train_loss", "epoch/running_loss")
_SMOOTHED = {"step/loss": 90}  # of 100
_WITHOUT_DOTS = ("train_loss/mean",)  # 50 points, which hide the line
_SECTIONS = ("comparison", "step", "epoch", "test", "test_class_accuracy", "training", "System metrics")
_RUNS = 100  # that a chart draws, at most


def runs(chosen_by: str) -> str:
    """The state for a comparison whose runs are ordered by that figure."""
    validated = chosen_by == "validation_accuracy"
    lines = _VALIDATED if validated else _NOT_VALIDATED
    columns = {
        "params.`optimizer`": 100, "params.`optimizer.lr`": 100, "metrics.`test/accuracy`": 110,
        f"metrics.`epoch/{chosen_by}`": 190 if validated else 140, "params.`seed`": 70,
        "params.`optimizer.class`": 130, "tags.`status`": 100, "params.`optimizer.weight_decay`": 190,
        "metrics.`test/loss`": 90, "metrics.`test/expected_calibration_error`": 260,
    }  # fmt: skip
    return _state(
        columns, f"epoch/{chosen_by}", ascending=not validated, marked="comparison", sections=_SECTIONS,
        charts=[*(_line(metric) for metric in lines), _chart("BAR", "test/accuracy")],
    )  # fmt: skip


def summaries(tag: str, validated: bool) -> str:
    """The same for the means over the seeds, whose runs have that tag.

    The ends of the intervals are columns of the table, and bands in the report: MLflow cannot fill the area between two
    lines.
    """
    figures = [*(("validation_accuracy", "validation_loss") if validated else ()), "train_loss"]
    columns = {
        "metrics.`test_accuracy/mean`": 170, "metrics.`test_accuracy/lower`": 170, "metrics.`test_accuracy/upper`": 170,
        "params.`class`": 130, "params.`seeds`": 130, "params.`status`": 100,
    }  # fmt: skip
    order = "test_accuracy/mean" if validated else "train_loss/mean"
    return _state(
        columns, order, ascending=not validated, marked=tag, sections=(_SECTIONS[0], *figures, "test_accuracy"),
        charts=[*(_line(f"{figure}/mean") for figure in figures), _chart("BAR", "test_accuracy/mean")],
    )  # fmt: skip


def trials(tag: str, params: Sequence[str]) -> str:
    """The same for the trials of tunings; parallel coordinates show which values go with which accuracy.

    Args:
        params: those that every drawn trial has: MLflow leaves out of the coordinates whatever lacks one.
    """
    columns = {
        "params.`optimizer`": 100, "params.`lr`": 110, "metrics.`validation/accuracy`": 160,
        "metrics.`validation/loss`": 130, "tags.`steps`": 70, "tags.`chosen`": 70, "tags.`trial`": 70,
        "tags.`status`": 100,
    }  # fmt: skip
    coordinates = {"selectedParams": list(params), "selectedMetrics": ["validation/accuracy"], "showAllRuns": True}
    charts = [_chart("PARALLEL", "validation/accuracy") | coordinates, _line("validation/accuracy")]
    charts[0]["uuid"] = "coordinates"
    return _state(columns, "validation/accuracy", ascending=False, marked=tag, sections=_SECTIONS[:1], charts=charts)


def saved(state: str) -> str:
    """The tag's value for a state."""
    now = time.time_ns() // 1_000_000
    return json.dumps({"name": NAME.capitalize(), "createdAt": now, "updatedAt": now, "state": state})


def addresses(url: str, trainings: str, means: str | None, prepared: bool = False) -> dict[str, str]:
    """Title → the page that shows it, of a server's experiments with these ids.

    Args:
        prepared: the server's pages open so by themselves; others have to be told the view, and say that it is shared.
    """
    told = "" if prepared else f"viewStateShareKey={NAME}&workflowType=machine_learning"
    runs, charts = f"{url}/#/experiments/{trainings}/runs", f"compareRunsMode=CHART{'&' if told else ''}{told}"
    found = {"the curve of every run": f"{runs}?{charts}", "the table of all runs": f"{runs}?{told}".rstrip("?")}
    if means is not None:
        found["the means over the seeds"] = f"{url}/#/experiments/{means}/runs?{charts}"
    return found


def state(saved: str) -> str:
    """The state in a tag's value; those of earlier versions are nothing else."""
    return str(json.loads(saved).get("state", saved))


def _state(columns: dict[str, int], order: str, *, ascending: bool, marked: str, sections: Iterable[str],
           charts: list[dict[str, Any]]) -> str:  # fmt: skip
    widths = _PINNED | columns
    return json.dumps(
        {
            "selectedColumns": list(columns),
            "columnOrder": list(widths),
            "columnWidths": widths,
            "orderByKey": f"metrics.`{order}`",
            "orderByAsc": ascending,
            "searchFilter": f"tags.{marked} = 'current'",
            "compareRunCharts": charts,
            "compareRunSections": _sections(sections),
            "isAccordionReordered": True,
            "runsHiddenMode": "SHOW_ALL",
        }
    )


def _sections(names: Iterable[str]) -> list[dict[str, Any]]:
    """The first is the one that is looked at."""
    sections: list[dict[str, Any]] = [
        {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": True}
        for name in names
    ]
    sections[0]["columns"] = 2
    return sections


def _line(metric: str) -> dict[str, Any]:
    """A metric by what MLflow calls its step, which can be an epoch."""
    dots = {"displayPoints": False} if metric in _WITHOUT_DOTS else {}
    return _chart("LINE", metric) | dots | {
        "selectedMetricKeys": [metric], "xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear",
        "scaleType": "linear", "range": {}, "yAxisKey": "metric", "yAxisExpressions": [],
        "lineSmoothness": _SMOOTHED.get(metric, 0), "ignoreOutliers": False, "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": metric not in _SMOOTHED,
    }  # fmt: skip


def _chart(kind: str, metric: str) -> dict[str, Any]:
    return {
        "uuid": metric, "type": kind, "metricSectionId": _SECTIONS[0], "metricKey": metric, "isGenerated": True,
        "deleted": False, "runsCountToCompare": _RUNS,
    }  # fmt: skip
