"""How MLflow's pages open: the table's columns, order and filter, and which charts come first.

The shape is that of the state of MLflow's page of runs (`ExperimentPageUIState` in its sources), which it reads from an
experiment's tag; it is not documented.
"""

import json
from typing import Any

NAME = "comparison"
TAG = f"mlflow.sharedViewState.{NAME}"

_COLUMNS = (
    "attributes.`Start Time`", "tags.`status`", "params.`optimizer.class`", "params.`optimizer.lr`",
    "params.`optimizer.weight_decay`", "params.`seed`", "metrics.`epoch/validation_accuracy`",
    "metrics.`epoch/validation_loss`", "metrics.`epoch/train_loss`", "metrics.`test/accuracy`", "metrics.`test/loss`",
    "metrics.`test/expected_calibration_error`",
)  # fmt: skip
_VALIDATED = ("epoch/validation_accuracy", "epoch/validation_loss", "epoch/train_loss")
_NOT_VALIDATED = ("epoch/train_loss", "epoch/running_loss")
_SECTIONS = ("comparison", "epoch", "test", "test_class_accuracy", "step", "System metrics")
_RUNS = 100  # that a chart draws, at most


def state(chosen_by: str) -> str:
    """The tag's value for a comparison whose runs are ordered by that figure."""
    validated = chosen_by == "validation_accuracy"
    sections: list[dict[str, Any]] = [
        {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": True}
        for name in _SECTIONS
    ]
    sections[0]["columns"] = 2
    lines = [_line(metric) for metric in (_VALIDATED if validated else _NOT_VALIDATED)]
    return json.dumps(
        {
            "selectedColumns": list(_COLUMNS),
            "orderByKey": f"metrics.`epoch/{chosen_by}`",
            "orderByAsc": not validated,
            "searchFilter": "tags.comparison = 'current'",
            "compareRunCharts": [*lines, _chart("BAR", "test/accuracy")],
            "compareRunSections": sections,
            "isAccordionReordered": True,
        }
    )


def _line(metric: str) -> dict[str, Any]:
    """A metric by epoch, which MLflow calls its step."""
    return _chart("LINE", metric) | {
        "selectedMetricKeys": [metric], "xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear",
        "scaleType": "linear", "range": {}, "yAxisKey": "metric", "yAxisExpressions": [], "lineSmoothness": 0,
        "ignoreOutliers": False, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
    }  # fmt: skip


def _chart(kind: str, metric: str) -> dict[str, Any]:
    return {
        "uuid": metric, "type": kind, "metricSectionId": _SECTIONS[0], "metricKey": metric, "isGenerated": True,
        "deleted": False, "runsCountToCompare": _RUNS,
    }  # fmt: skip
