"""How MLflow's pages open: the table's columns, order and filter, and which charts come first.

The shape is that of the state of MLflow's page of runs (`ExperimentPageUIState` in its sources), which it reads from an
experiment's tag; it is not documented.
"""

import json
from collections.abc import Iterable
from typing import Any

NAME = "comparison"
TAG = f"mlflow.sharedViewState.{NAME}"

_COLUMNS = (
    "attributes.`Start Time`", "tags.`status`", "params.`optimizer.class`", "params.`optimizer.lr`",
    "params.`optimizer.weight_decay`", "params.`seed`", "metrics.`epoch/validation_accuracy`",
    "metrics.`epoch/validation_loss`", "metrics.`epoch/train_loss`", "metrics.`test/accuracy`", "metrics.`test/loss`",
    "metrics.`test/expected_calibration_error`",
)  # fmt: skip
_VALIDATED = ("step/validation_accuracy", "step/validation_loss", "step/loss")
_NOT_VALIDATED = ("epoch/train_loss", "epoch/running_loss")
_SMOOTHED = {"step/loss": 90}  # of 100
_SECTIONS = ("comparison", "step", "epoch", "test", "test_class_accuracy", "System metrics")
_BAND = ("mean", "lower", "upper")
_RUNS = 100  # that a chart draws, at most


def state(chosen_by: str) -> str:
    """The tag's value for a comparison whose runs are ordered by that figure."""
    validated = chosen_by == "validation_accuracy"
    lines = [_line(metric) for metric in (_VALIDATED if validated else _NOT_VALIDATED)]
    return json.dumps(
        {
            "selectedColumns": list(_COLUMNS),
            "orderByKey": f"metrics.`epoch/{chosen_by}`",
            "orderByAsc": not validated,
            "searchFilter": "tags.comparison = 'current'",
            "compareRunCharts": [*lines, _chart("BAR", "test/accuracy")],
            "compareRunSections": _sections(_SECTIONS),
            "isAccordionReordered": True,
            "runsHiddenMode": "SHOWALL",
        }
    )


def summary(tag: str, validated: bool) -> str:
    """The same for the summaries, whose runs have that tag: each chart has a mean and the ends of its interval."""
    figures = [*(("validation_accuracy", "validation_loss") if validated else ()), "train_loss"]
    return json.dumps(
        {
            "selectedColumns": [
                "params.`seeds`",
                "params.`status`",
                *(f"metrics.`test_accuracy/{end}`" for end in _BAND),
            ],
            "orderByKey": f"metrics.`{'test_accuracy' if validated else 'train_loss'}/mean`",
            "orderByAsc": not validated,
            "searchFilter": f"tags.{tag} = 'current'",
            "compareRunCharts": [*(_band(figure) for figure in figures), _chart("BAR", "test_accuracy/mean")],
            "compareRunSections": _sections((_SECTIONS[0], *figures, "test_accuracy")),
            "isAccordionReordered": True,
            "runsHiddenMode": "SHOWALL",
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
    return _chart("LINE", metric) | {
        "selectedMetricKeys": [metric], "xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear",
        "scaleType": "linear", "range": {}, "yAxisKey": "metric", "yAxisExpressions": [],
        "lineSmoothness": _SMOOTHED.get(metric, 0), "ignoreOutliers": False, "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": metric not in _SMOOTHED,
    }  # fmt: skip


def _band(figure: str) -> dict[str, Any]:
    own = {"selectedMetricKeys": [f"{figure}/{end}" for end in _BAND], "displayPoints": False}
    return _line(f"{figure}/mean") | own


def _chart(kind: str, metric: str) -> dict[str, Any]:
    return {
        "uuid": metric, "type": kind, "metricSectionId": _SECTIONS[0], "metricKey": metric, "isGenerated": True,
        "deleted": False, "runsCountToCompare": _RUNS,
    }  # fmt: skip
