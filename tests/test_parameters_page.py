"""docs/parameters.md has every key of params.yaml, with the default and the choices of the schema."""

import types
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from optlab.schema import optimizer
from optlab.schema.parameters import Config
from optlab.training.models import MODELS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "parameters.md"
TABLES = [part for part in PAGE.read_text().split("\n\n") if part.startswith("|")]
KEYS, SCHEDULES = (
    {cells[0].strip("`"): cells[1:] for cells in ([cell.strip() for cell in row.strip("|").split(" | ")] for row in
     table.splitlines()[2:])}
    for table in TABLES
)  # fmt: skip


def unwrap(annotation):
    """Return the model of a field, or None; of `X | None`, X."""
    if isinstance(annotation, types.UnionType):
        annotation, *others = (each for each in typing.get_args(annotation) if each is not type(None))
        annotation = None if others else annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def list_leaves(model, prefix="", optional=False):
    """Yield (key, field, whether a mapping above it may be left out) of all keys that hold no further keys."""
    for name, field in model.model_fields.items():
        inner = unwrap(field.annotation)
        if inner is None:
            yield f"{prefix}{name}", field, optional
        else:
            yield from list_leaves(
                inner, f"{prefix}{name}.", optional or (not field.is_required() and field.default is None)
            )


LEAVES = {key: (field, optional) for key, field, optional in list_leaves(Config)}


def test_parameters_page_lists_exactly_the_keys_of_the_schema():
    assert list(KEYS) != [] and set(KEYS) == set(LEAVES)


@pytest.mark.parametrize("key", LEAVES)
def test_parameters_page_has_default_and_choices_of_schema(key):
    (field, optional), (shown, meaning) = LEAVES[key], KEYS[key]
    if optional or (not field.is_required() and field.default is None):
        assert shown == "none"
    elif field.is_required():
        assert shown == "required"
    elif isinstance(field.default, BaseModel):
        assert YAML(typ="safe").load(shown.strip("`")) == {"name": field.default.name}
    else:
        value = YAML(typ="safe").load(shown.strip("`"))
        assert value == field.default and type(value) is type(field.default)
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    assert all(f"`{choice}`" in meaning for choice in choices)


def test_parameters_page_lists_models():
    assert all(f"`{name}`" in KEYS["model"][1] for name in MODELS)


def test_parameters_page_lists_schedules_and_their_keys():
    assert tuple(name for name in SCHEDULES) == optimizer.SCHEDULE_NAMES
    classes = (
        optimizer.ConstantSchedule, optimizer.CosineSchedule, optimizer.OneCycleSchedule, optimizer.StepSchedule
    )  # fmt: skip
    for schedule in classes:
        name = typing.get_args(schedule.model_fields["name"].annotation)[0]
        keys = set(schedule.model_fields) - {"name"}
        assert {key for key in ("warmup_epochs", "step_epochs", "gamma") if f"`{key}`" in SCHEDULES[name][1]} == keys
        assert schedule.model_fields["warmup_epochs"].default == 0
    assert optimizer.StepSchedule.model_fields["step_epochs"].is_required()
    assert f"`gamma` ({optimizer.StepSchedule.model_fields['gamma'].default})" in SCHEDULES["step"][1]
