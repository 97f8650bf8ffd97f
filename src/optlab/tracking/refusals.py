"""What MLflow refuses for good of a run, and how the rest of it is sent all the same."""

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any, Literal

from optlab.system.errors import WeightsError
from optlab.tracking import server

if TYPE_CHECKING:
    from mlflow import MlflowClient

Kind = Literal["params", "tags", "metrics"]
Refused = list[tuple[str, str]]  # what, and why

_SIZES = {"params": 100, "tags": 100, "metrics": 1000}  # MLflow's limits for one call
_LONGEST = {"params": 6000, "tags": 8000}  # characters of a value, beyond which MLflow cuts it and says nothing
_CUT = " … (cut: the whole value is among the artifacts, in whole/)"

_ROOM = 50_000_000  # bytes of free disk below which no error is an event's own fault
_CODES = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
_PASSING = ("thread", "shutdown")  # in what Python says where it cannot start a thread, or is ending


def is_final(error: Exception) -> bool:
    """Whether the same would be refused again: not if the store was away, overloaded, or failed inside."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _CODES
    if shutil.disk_usage(".").free < _ROOM:  # libraries raise whatever they like then
        return False
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _PASSING):
        return False
    # What the store's clients raise on a bad connection is an OSError, or a database's own error.
    own = LookupError | TypeError | ValueError | RuntimeError | WeightsError
    return isinstance(error, own) and not isinstance(error, OSError)


def log(client: "MlflowClient", run_id: str, kind: Kind, entities: list[Any], refused: Refused) -> None:
    """Log parameters, tags or metrics; those that the store refuses are named in `refused`, and the others logged.

    Values that are refused, or longer than MLflow takes, are whole in an artifact.

    Raises:
        Exception: whatever MLflow raises, but for a refusal of some of them.
    """
    whole = {}
    if kind != "metrics":
        whole = {each.key: each.value for each in entities if len(each.value) > _LONGEST[kind]}
        entities = [_cut(kind, each) for each in entities]
    kept = {each.key: each.value for each in entities} | whole
    for start in range(0, len(entities), _SIZES[kind]):
        for each, why in _log(client, run_id, kind, entities[start : start + _SIZES[kind]]):
            refused.append((f"the {kind[:-1]} {each.key!r}", why))
            whole[each.key] = kept[each.key]
    if whole and kind != "metrics":
        text = json.dumps(whole, indent=2)
        client.log_text(run_id, text, f"whole/{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json")


def _cut(kind: Kind, entity: Any) -> Any:
    longest = _LONGEST[kind]
    if len(entity.value) <= longest:
        return entity
    return type(entity)(entity.key, entity.value[: longest - len(_CUT)] + _CUT)


def _log(client: "MlflowClient", run_id: str, kind: Kind, entities: list[Any]) -> list[tuple[Any, str]]:
    """Log them in one call, or else in halves; return those that were refused alone, and why."""
    try:
        batch: dict[str, Any] = {kind: entities}
        client.log_batch(run_id, **batch)
    except Exception as error:
        if not is_final(error) or not _is_active(client, run_id):
            raise
        if len(entities) == 1:
            return [(entities[0], server.describe(error))]
        half = len(entities) // 2
        return [*_log(client, run_id, kind, entities[:half]), *_log(client, run_id, kind, entities[half:])]
    return []


def _is_active(client: "MlflowClient", run_id: str) -> bool:
    """Whether the run is there, and takes anything: nobody has deleted it, nor emptied the store."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False
