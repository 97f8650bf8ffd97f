"""The class that an entry of params.yaml names, and what its source says that it wants."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from optlab.config import zoo
from optlab.config.entries import OptimizerSpec
from optlab.system.errors import ConfigError
from optlab.system.wording import did_you_mean
from optlab.training import argument_types, construction
from optlab.training.construction import Base, arguments
from optlab.training.models import resolve


def torch_classes() -> dict[str, type[Optimizer]]:
    """The optimizer classes of torch.optim, by name."""
    return {
        name: cls
        for name, cls in inspect.getmembers(torch.optim, inspect.isclass)
        if issubclass(cls, Optimizer) and cls is not Optimizer
    }


@dataclass(frozen=True)
class Entry:
    """One class with its hyperparameters, and what it wraps.

    Attributes:
        where: in params.yaml.
    """

    where: str
    cls: type[Optimizer]
    spec: OptimizerSpec
    base: Base | None

    @property
    def classes(self) -> list[type[Optimizer]]:
        """Its own, and that of what it wraps."""
        return [self.cls, *([self.base[0]] if self.base else [])]


def entry_of(where: str, spec: OptimizerSpec) -> Entry:
    """The entry with its class, and that of its base.

    Raises:
        ConfigError: there is no such class, it has no such hyperparameter, or it wraps another optimizer and gets none.
    """
    cls = _class(where, spec)
    wants = construction.base_argument(cls)
    if spec.base is None:
        if wants and arguments(cls)[wants].default is inspect.Parameter.empty:
            raise ConfigError(
                f"params.yaml: {where}: {spec.class_} wraps another optimizer: add `base: {{class: SGD, lr: 0.1}}`"
            )
        return Entry(where, cls, spec, None)
    if wants is None:
        raise ConfigError(f"params.yaml: {where}.base: {spec.class_} wraps no other optimizer: remove it")
    return Entry(where, cls, spec, (entry_of(f"{where}.base", spec.base).cls, spec.base))


def _class(where: str, spec: OptimizerSpec) -> type[Optimizer]:
    known, named = torch_classes(), f"{where}.class: {spec.class_}"
    if spec.class_ not in known and (entry := zoo.name_of(spec.class_)):
        raise ConfigError(f"params.yaml: {named}: no class of torch.optim: `optlab add {entry}` has an entry for it")
    cls = known[spec.class_] if spec.class_ in known else resolve(spec.class_, named, known)
    if not (inspect.isclass(cls) and issubclass(cls, Optimizer)):
        raise ConfigError(f"params.yaml: {where}.class: {spec.class_} is no subclass of torch.optim.Optimizer")
    if cls is torch.optim.SparseAdam:
        raise ConfigError(
            f"params.yaml: {where}.class: SparseAdam takes sparse gradients only, and no model here has them: use Adam"
        )
    _check_names(where, cls, spec)
    argument_types.check(where, cls, spec.hyperparameters)
    return cls


def _check_names(where: str, cls: type[Optimizer], spec: OptimizerSpec) -> None:
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments(cls).values()):
        return
    for key in spec.hyperparameters:
        if key not in _hyperparameters(cls):
            raise _unknown(f"{where}.{key}", spec.class_, _hyperparameters(cls), key)


def check_groups(entry: Entry) -> None:
    """A group's keys are hyperparameters, or flags that the class's source names, such as `use_muon`.

    torch's classes take any key into a group, and leave it there.
    """
    known = [name for cls in entry.classes for name in _hyperparameters(cls)]
    source = "\n".join(_source(cls) for cls in entry.classes)
    for number, group in enumerate(entry.spec.groups):
        for key in group.hyperparameters:
            flagged = key != "params" and re.search(rf"""["']{re.escape(key)}["']""", source)
            if key not in known and not flagged:
                raise _unknown(f"{entry.where}.groups.{number}.{key}", entry.cls.__name__, known, key)
            owner = next((cls for cls in entry.classes if key in arguments(cls)), entry.cls)
            argument_types.check(f"{entry.where}.groups.{number}", owner, {key: group.hyperparameters[key]})


def _hyperparameters(cls: type[Optimizer]) -> list[str]:
    """The names of its arguments, but for those that params.yaml need not give and for a `**kwargs`."""
    given = construction.known(cls)
    return [name for name, each in arguments(cls).items() if name not in given and each.kind is not each.VAR_KEYWORD]


def _unknown(where: str, name: str, known: list[str], key: str) -> ConfigError:
    hint = did_you_mean(key, known) or f": it takes {', '.join(known)}"
    return ConfigError(f"params.yaml: {where}: {name} has no such hyperparameter{hint}")


def is_of_torch(cls: type) -> bool:
    """Whether it is one of torch's own, whose ways are known."""
    return cls.__module__.partition(".")[0] == "torch"


def asks_for_graph(cls: type[Optimizer]) -> bool:
    """Whether its own source speaks of gradients that can be differentiated once more."""
    return not is_of_torch(cls) and "create_graph" in _source_of(cls)


def sets_rate(cls: type[Optimizer]) -> bool:
    """Whether its own source sets a learning rate elsewhere than where it is built."""
    own = [each for each in cls.__mro__ if not is_of_torch(each) and each is not object]
    methods = [
        value for each in own for name, value in vars(each).items() if inspect.isfunction(value) and name != "__init__"
    ]
    return any(re.search(r"""\[["']lr["']\]\s*[-+*/]?=(?!=)""", _source_of(each)) for each in methods)


def flag_of(cls: type[Optimizer], complaint: str) -> str | None:
    """The key that it demands of every group, such as `use_muon`, by what it says of groups without it."""
    found = re.search(r"""[`"'](\w+)[`"'] (?:must be set|is required|is missing)""", complaint)
    return found[1] if found and found[1] not in arguments(cls) else None


def _source(cls: type[Optimizer]) -> str:
    """Its own, and that of the classes that it inherits from, but for torch's."""
    return "\n".join(_source_of(each) for each in cls.__mro__ if not is_of_torch(each) and each is not object)


def _source_of(cls: Any) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # it was not read from a file
        return ""
