"""Checks of params.yaml's entries: build the model and every optimizer, and take one step without data."""

import contextlib
import copy
import inspect
import io
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from optlab.preflight import argument_types, error_attribution, model_check
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system import processes
from optlab.system.errors import ConfigError, ResourceError, WeightsError, summarize_error
from optlab.system.text import suggest_similar
from optlab.training import determinism, guards, optimizers, weights
from optlab.training.models import build as build_model
from optlab.training.optimizer_driver import OptimizerDriver, ParamGroup, flatten_wrappers
from optlab.training.optimizer_factory import (
    ResolvedOptimizer,
    TrainingContext,
    convert_hyperparameters,
    get_arguments,
    get_injected_names,
    get_source,
    has_parameters_argument,
    is_torch_class,
    resolve_optimizer,
)

_MAX_CLOSURE_CALLS = 50  # in a checked step: LBFGS with `max_iter: 1000000000` would not end

_RUN_CACHE_IGNORES = ("size", "nfiles")  # keys that DVC leaves out of a run's digest, dvc.stage.cache

# Classes that `portable` was tested with, by model; docs/determinism.md describes the test.
TESTED_CLASSES = {
    "zilliax": (
        "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam",
        "RMSprop", "Rprop", "SGD", "pytorch_optimizer.Lion", "pytorch_optimizer.Muon",
        "schedulefree.AdamWScheduleFree",
    ),
    "conv6": ("SGD", "AdamW", "pytorch_optimizer.Muon"),
    "resnet18": ("SGD", "Adam"),
}  # fmt: skip


class _ClosureLimitError(Exception):
    """End of a step that calls its closure too often."""


def check_config(config: Config) -> list[str]:
    """Build the model and every optimizer, and take one step of each without data.

    Some values, such as a third beta for Adam, are refused by a class's first step only.

    Returns:
        warnings, such as that a first step takes more than half of the machine's memory.

    Raises:
        ConfigError: one line with the place in params.yaml and the remedy.
        ResourceError: the machine lacks memory.
    """
    model = build_model(config.model, seed=0)
    model_check.check(config.model, model, config.data, config.training)
    try:
        weights.encode(model, config.model)
    except WeightsError as error:
        raise ConfigError(f"params.yaml: model: {error}") from None
    warnings = []
    for name, spec in config.optimizers.items():
        _check_run_cache_keys(f"optimizers.{name}", spec.model_dump(mode="json", by_alias=True))
        context = TrainingContext.from_config(config, copy.deepcopy(model))
        try:
            with (
                processes.measure_peak_memory() as peak_memory,
                guards.guard_torch_settings(f"optimizers.{name}: {spec.class_}"),
            ):
                driver = check_optimizer(name, spec, context)
        except ConfigError as error:
            raise ConfigError(f"{error}{_suggest_groups(name, spec, context)}") from None
        warnings += _check_schedule(name, config, driver, context)
        if driver.swaps_weights and any(isinstance(each, _BatchNorm) for each in model.modules()):
            warnings.append(
                f"warning: optimizers.{name}: {spec.class_} is evaluated with other weights than it trains, and the "
                f"model's batch normalisation with the statistics of the latter: docs/entries.md has what that costs"
            )
        total_memory = processes.get_total_memory()
        if peak_memory.bytes > total_memory / 2:
            warnings.append(
                f"warning: optimizers.{name}: its first step took {peak_memory.bytes / processes.GIB:.1f} GiB of "
                f"memory, more than half of the {total_memory / processes.GIB:.1f} GiB that there are"
            )
    return warnings


def _check_run_cache_keys(where: str, value: Any) -> None:
    """Refuse a key that DVC's run cache ignores: with another value, DVC would restore the former run's files."""
    if isinstance(value, dict):
        for key, nested in value.items():
            if key in _RUN_CACHE_IGNORES:
                raise ConfigError(
                    f"params.yaml: {where}.{key}: DVC ignores a key named {key} when it looks for a cached run: "
                    f"rename the argument of the class"
                )
            _check_run_cache_keys(f"{where}.{key}", nested)
    elif isinstance(value, list):
        for number, nested in enumerate(value):
            _check_run_cache_keys(f"{where}.{number}", nested)


def check_optimizer(name: str, spec: OptimizerSpec, context: TrainingContext) -> OptimizerDriver:
    """Build one optimizer and take a step without data, down the mean of the weights; return the optimizer.

    Raises:
        ConfigError: one line with the place in params.yaml and the remedy.
        ResourceError: the machine lacks memory.
    """
    trainable = [value for value in context.model.parameters() if value.requires_grad]

    def take_step(spec: OptimizerSpec) -> OptimizerDriver:
        driver = optimizers.build(name, spec, context, check_entry)
        remaining_calls = iter(range(_MAX_CLOSURE_CALLS))

        @torch.enable_grad()
        def closure() -> Tensor:
            if next(remaining_calls, None) is None:
                raise _ClosureLimitError
            driver.zero_grad()
            loss = torch.stack([value.square().mean() for value in trainable]).sum()
            loss.backward(create_graph=driver.create_graph)
            return loss

        driver.train()
        with contextlib.suppress(_ClosureLimitError):
            driver.step(closure)
        return driver

    return error_attribution.run_first_step(f"optimizers.{name}", spec, take_step)


def check_entry(entry: ResolvedOptimizer, context: TrainingContext) -> None:
    """Check the hyperparameters of an entry, of its base and of its groups by the signatures of their classes.

    Raises:
        ConfigError: a hyperparameter is unknown, has a value of the wrong type, or a group lacks a required flag.
    """
    check_hyperparameters(entry)
    check_groups(entry)
    if has_parameters_argument(entry.cls) or entry.base:
        if entry.spec.groups:
            _check_group_values(entry, context)
        else:
            _check_group_flag(entry, context)


def check_hyperparameters(entry: ResolvedOptimizer) -> None:
    """Refuse unknown hyperparameters of an entry or its base, and values of the wrong type."""
    parts = [(entry.where, entry.cls, entry.spec)]
    if entry.base:
        parts.append((f"{entry.where}.base", *entry.base))
    for where, cls, spec in parts:
        known = _list_hyperparameters(cls)
        takes_any = any(argument.kind is argument.VAR_KEYWORD for argument in get_arguments(cls).values())
        for key in spec.hyperparameters:
            if key not in known and not takes_any:
                raise _make_unknown_hyperparameter_error(f"{where}.{key}", spec.class_, known, key)
        argument_types.check(where, cls, spec.hyperparameters)


def check_groups(entry: ResolvedOptimizer) -> None:
    """Refuse keys of groups that are neither hyperparameters nor flags that the class's source names.

    torch's classes accept any key in a group, and ignore it.
    """
    known = [name for cls in entry.classes for name in _list_hyperparameters(cls)]
    source = "\n".join(get_source(each) for cls in entry.classes for each in _list_own_classes(cls))
    for number, group in enumerate(entry.spec.groups):
        for key in group.hyperparameters:
            flagged = key != "params" and re.search(rf"""["']{re.escape(key)}["']""", source)
            if key not in known and not flagged:
                raise _make_unknown_hyperparameter_error(
                    f"{entry.where}.groups.{number}.{key}", entry.cls.__name__, known, key
                )
            owner = next((cls for cls in entry.classes if key in get_arguments(cls)), entry.cls)
            argument_types.check(f"{entry.where}.groups.{number}", owner, {key: group.hyperparameters[key]})


def _check_group_values(entry: ResolvedOptimizer, context: TrainingContext) -> None:
    """Instantiate the class with each group's values as its own: torch's classes do not check the values of groups."""
    own = get_arguments(entry.cls)
    for number, group in enumerate(entry.spec.groups):
        as_own = {key: value for key, value in group.hyperparameters.items() if key in own}
        spec = OptimizerSpec.model_validate({"class": entry.spec.class_, **entry.spec.hyperparameters, **as_own})
        param_group = ParamGroup("", convert_hyperparameters(group), {"": nn.Parameter(torch.ones(2, 2))})
        group_entry = replace(entry, where=f"{entry.where}.groups.{number}", spec=spec)
        optimizers.instantiate_entry(group_entry, [param_group], context)


def _check_group_flag(entry: ResolvedOptimizer, context: TrainingContext) -> None:
    """Refuse an entry without groups if its class requires a flag of each group, such as `use_muon`."""
    flag = None
    for count in (1, 2):
        try:
            with determinism.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
                optimizers.make_toy_optimizer(entry, {}, context, groups=count)
        except Exception as error:  # reported in full when each parameter is tried
            flag = _find_missing_group_flag(entry.cls, summarize_error(error))
        else:
            return
    if flag:
        raise ConfigError(
            f"params.yaml: {entry.where}: {entry.spec.class_} wants `{flag}` of each group: add "
            f'`groups: [{{ndim: 2, {flag}: true}}, {{match: "*", {flag}: false}}]`'
        )


def _find_missing_group_flag(cls: type[Optimizer], error_message: str) -> str | None:
    """Return the key that an error message requires of every group."""
    found = re.search(r"""[`"'](\w+)[`"'] (?:must be set|is required|is missing)""", error_message)
    return found[1] if found and found[1] not in get_arguments(cls) else None


def _check_schedule(name: str, config: Config, driver: OptimizerDriver, context: TrainingContext) -> list[str]:
    """Refuse a schedule for a class that has no learning rate or sets it itself; return warnings."""
    schedule, spec, warnings = config.get_schedule(name), config.get_optimizer(name), []
    if schedule.name == "constant" and not schedule.warmup_epochs:
        return []
    entries = [resolve_optimizer(f"optimizers.{name}", spec)]
    if len(driver.optimizers) > 1 and spec.fallback:
        entries.append(resolve_optimizer(f"optimizers.{name}.fallback", spec.fallback))
    for entry, optimizer, param_groups in zip(entries, driver.optimizers, driver.param_groups, strict=True):
        groups = [group for each in flatten_wrappers(optimizer) for group in each.param_groups]
        reason = "has no learning rate" if all(group.get("lr") is None for group in groups) else (
            "sets its learning rate itself" if _changes_lr(entry, param_groups, context, driver) else ""
        )  # fmt: skip
        if reason:
            raise ConfigError(
                f"params.yaml: {entry.where}: {entry.spec.class_} {reason}, so the schedule {schedule.name} is not for "
                f"it: add `schedule: {{name: constant}}` to optimizers.{name}"
            )
        if any(can_set_lr(cls) for cls in entry.classes):
            warnings.append(
                f"warning: {entry.where}: {entry.spec.class_} can set its learning rate itself: the schedule "
                f"{schedule.name} then multiplies that by the change of its factor"
            )
    return warnings


def _changes_lr(
    entry: ResolvedOptimizer, param_groups: list[ParamGroup], context: TrainingContext, built: OptimizerDriver
) -> bool:
    """Return whether the class's steps change its learning rate, found by some steps on small parameters."""

    def run_probe() -> bool:
        with contextlib.suppress(Exception):  # it takes no such parameters, or fails in a later step
            optimizer, parameters = optimizers.make_toy_optimizer(entry, param_groups[0].values, context)
            driver = OptimizerDriver([optimizer], [[]], built.create_graph, built.protocol, lambda: [])
            before = driver.get_current_lrs()
            optimizers.run_steps(driver, parameters)
            after = driver.get_current_lrs()
            return any(after.get(place) != rate for place, rate in before.items())
        return False

    return not all(is_torch_class(cls) for cls in entry.classes) and optimizers.run_isolated(run_probe)


def can_set_lr(cls: type[Optimizer]) -> bool:
    """Return whether the class's source sets a learning rate outside `__init__`."""
    methods = [
        value
        for each in _list_own_classes(cls)
        for name, value in vars(each).items()
        if inspect.isfunction(value) and name != "__init__"
    ]
    return any(re.search(r"""\[["']lr["']\]\s*[-+*/]?=(?!=)""", get_source(each)) for each in methods)


def _suggest_groups(name: str, spec: OptimizerSpec, context: TrainingContext) -> str:
    """Return the groups to add, if the first step works for parameters of some numbers of dimensions only."""
    if spec.groups or spec.fallback:
        return ""
    by_dimensions: dict[int, nn.Parameter] = {}
    for value in context.model.parameters():
        by_dimensions.setdefault(value.ndim, value)
    accepted_ndims = []
    for ndim, value in by_dimensions.items():
        single_parameter = nn.ParameterDict({"alone": nn.Parameter(value.detach().clone())})
        with contextlib.suppress(ConfigError, ResourceError):
            with guards.guard_torch_settings(f"optimizers.{name}"):
                check_optimizer(name, spec, TrainingContext(single_parameter, context.lengths))
            accepted_ndims.append(ndim)
    if not 0 < len(accepted_ndims) < len(by_dimensions):
        return ""
    groups = ", ".join(f"{{ndim: {ndim}}}" for ndim in accepted_ndims)
    return f": it takes some parameters: add `groups: [{groups}]` and `fallback: {{class: AdamW, lr: 0.001}}`"


def list_portability_warnings(config: Config) -> list[str]:
    """Return a warning for each model and class that `portable` was not tested with; see docs/determinism.md."""
    if config.training.numerics == "fast":
        return []
    if config.model not in TESTED_CLASSES:
        untested = [f"model: {config.model}"]
    else:
        untested = [
            f"optimizers.{name}: {each} on {config.model}"
            for name, spec in config.optimizers.items()
            for each in spec.classes
            if each not in TESTED_CLASSES[config.model]
        ]
    return [
        f"warning: numerics: portable: {each} is not among what was measured: another make of CPU or number of threads "
        f"may give other bits"
        for each in untested
    ]


def _list_hyperparameters(cls: type[Optimizer]) -> list[str]:
    """Return the names of the arguments that params.yaml may give, without `**kwargs`."""
    injected = get_injected_names(cls)
    return [
        name for name, each in get_arguments(cls).items() if name not in injected and each.kind is not each.VAR_KEYWORD
    ]


def _make_unknown_hyperparameter_error(where: str, name: str, known: list[str], key: str) -> ConfigError:
    hint = suggest_similar(key, known) or f": it takes {', '.join(known)}"
    return ConfigError(f"params.yaml: {where}: {name} has no such hyperparameter{hint}")


def _list_own_classes(cls: type[Optimizer]) -> list[type]:
    """Return the class and the classes it inherits from, without torch's."""
    return [each for each in cls.__mro__ if not is_torch_class(each) and each is not object]
