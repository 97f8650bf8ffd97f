"""Verdicts of a reproduction: for the terminal, for machines, for MLflow, and as an exit status."""

import dataclasses
import json
import math
import sys
from typing import Any

from optlab.reproduce.output_diff import Reproduction
from optlab.system.errors import StorageError
from optlab.system.git import Revision
from optlab.tracking import event_log, mlflow_store, uploader
from optlab.tracking.event_log import EventLog, get_current_time_ms

EXPERIMENT = "optlab-reproductions"
_EXIT_STATUS = {"identical": 0, "within tolerance": 3, "different": 1, "not run": 2}
_WORST_FIRST = ("not run", "different", "within tolerance", "identical")


def get_exit_status(results: list[Reproduction]) -> int:
    """0 if all are identical, else the worst: 2 not run, 1 different, 3 within tolerance."""
    worst = min(results, key=lambda result: _WORST_FIRST.index(result.verdict))
    return _EXIT_STATUS[worst.verdict]


def format_json(revision: Revision, results: list[Reproduction]) -> str:
    """Everything, for machines."""
    return json.dumps(
        {
            "revision": revision.name,
            "commit": revision.commit,
            "exit_status": get_exit_status(results),
            "runs": [_replace_non_finite(dataclasses.asdict(result)) for result in results],
        },
        indent=2,
        allow_nan=False,
    )


def _replace_non_finite(value: Any) -> Any:
    """What JSON has no number for, as a word: a figure that only one of two has is infinitely far from the other."""
    if isinstance(value, dict):
        return {key: _replace_non_finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def format_text(revision: Revision, results: list[Reproduction]) -> str:
    """A table of runs, then what differs in each that is not identical."""
    lines = ["", f"{revision.name} ({revision.commit[:12]})", ""]
    width = max(len(result.run) for result in results)
    for result in results:
        same = sum(output.is_identical for output in result.outputs)
        lines.append(
            f"{result.run:<{width}}  {result.verdict:<16}  {same}/{len(result.outputs)} outputs  {result.reason}"
        )
    for result in results:
        if result.verdict == "identical":
            continue
        lines += ["", result.run]
        lines += [
            f"  {output.path}  recorded {output.recorded}, now {output.reproduced or 'not written'}"
            for output in result.outputs
            if not output.is_identical
        ]
        lines += [
            f"  largest difference of {name.replace('_', ' ')}: {gap.absolute:.3g}, relative {gap.relative:.3g}"
            for name, gap in result.gaps.items()
        ]
        if result.gaps and "weights" not in result.gaps:
            lines.append("  the recorded weights are in no cache or remote here, so they are not compared")
        if result.conditions:
            lines.append("  conditions that differ, the likely cause first:")
            lines += [f"    {name}: {old} → {new}" for name, (old, new) in result.conditions.items()]
        elif result.verdict != "not run" and not result.run.startswith("tune@"):
            lines.append("  no recorded condition differs: is the code at the revision deterministic?")
    return "\n".join([*lines, ""])


def log_to_mlflow(revision: Revision, result: Reproduction, weights: str | None) -> None:
    """A run of its own in MLflow, in an experiment of its own, that names the original; trouble is a warning."""
    try:
        _write_event_log(revision, result, _find_original_run(revision, result.run, weights))
    except StorageError as error:
        print(f"warning: {error}", file=sys.stderr)


def _write_event_log(revision: Revision, result: Reproduction, original: str | None) -> None:
    event_log = EventLog.create(f"reproduce-{result.run}")
    tags: dict[str, Any] = {
        "reproduces.revision": revision.name,
        "reproduces.commit": revision.commit,
        "reproduces.run": result.run,
        "verdict": result.verdict,
    }
    if original:
        tags["reproduces.mlflow_run"] = original
    now = get_current_time_ms()
    event_log.append("start", time=now, name=f"{result.run} of {revision.name}", experiment=EXPERIMENT, tags=tags,
                   params={f"differs.{name}": f"{old} → {new}" for name, (old, new) in result.conditions.items()},
                   dataset=None)  # fmt: skip
    identical = float(result.verdict == "identical")
    values = {"identical": identical} | {f"difference/{name}": gap.absolute for name, gap in result.gaps.items()}
    event_log.log_metrics([(name, value, now, 0) for name, value in values.items()])
    event_log.end("failed" if result.verdict == "not run" else "completed")
    uploader.push_pending()


def _find_original_run(revision: Revision, run: str, weights: str | None) -> str | None:
    """The id of the MLflow run with these weights, if there is one here."""
    if weights is None:
        return None
    try:
        return mlflow_store.find_run_ids(event_log.get_experiment_name(revision.folder), [(run, weights)])[0]
    except Exception as error:
        print(f"warning: MLflow was not reached: {error}", file=sys.stderr)
        return None
