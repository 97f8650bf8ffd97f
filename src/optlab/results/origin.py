"""Where numbers came from: which conditions differ between two runs, and among the runs of one table."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optlab.config.parameters import Config
from optlab.record.contents import Conditions, Trained
from optlab.record.runs import RunFiles
from optlab.system.wording import counted

# Likeliest cause first: what changes the bits most often when it differs.
CAUSES = ("variables", "cpu_capability", "onednn_isa", "threads", "device", "packages", "cpu", "python", "platform")

# They watch a training and decide no number. What an upgrade of theirs does is not to make a record look mixed.
_WATCHING = ("packages.mlflow", "packages.dvc")
_TITLES = {"cpu_capability": "CPU capability", "onednn_isa": "oneDNN's instructions", "cpu": "CPU", "python": "Python"}
UNKNOWN = "not recorded"
_NAMED = 4  # runs, in a sentence


def differences(recorded: Conditions | None, here: Conditions) -> dict[str, tuple[Any, Any]]:
    """Flat name → (recorded, here) of what differs, the likely cause first."""
    if recorded is None:
        return {"conditions": (UNKNOWN, "recorded")}
    before, after = flat(recorded), flat(here)
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return {name: (before.get(name), after.get(name)) for name in sorted(names, key=_likelihood)}


def mixture(runs: Mapping[str, Conditions | None], portable: bool) -> dict[str, dict[str, list[str]]]:
    """What the runs of one table do not share: title of a condition → its value as text → the runs made under it.

    Args:
        runs: id → its conditions, None where none are recorded for these weights.
        portable: whether the bits are the same on every make of CPU, which then is no condition of them.
    """
    known = {run: flat(each) for run, each in runs.items() if each is not None}
    names = sorted({name for each in known.values() for name in each} - _ignored(portable), key=_likelihood)
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        groups: dict[str, list[str]] = {}
        for run, each in known.items():
            if name not in each and name.startswith(("packages.", "modules.")):
                continue  # it has no use for it: one optimizer's own package is no condition of the others
            groups.setdefault(str(each.get(name, UNKNOWN)), []).append(run)
        if len(groups) > 1:
            found[title(name)] = groups
    missing = [run for run in runs if run not in known]
    if missing:
        found["conditions"] = {UNKNOWN: missing}
    return found


def sentence(mixed: Mapping[str, Mapping[str, list[str]]]) -> str:
    """The mixture in words."""
    parts = [
        f"{name} {', '.join(f'{value} ({_in_brief(runs)})' for value, runs in groups.items())}"
        for name, groups in mixed.items()
    ]
    return (
        f"Not all runs are known to have been made under the same conditions, so a difference between them need not be "
        f"the optimizer's: {'; '.join(parts)}. `optlab check` names those to train again here."
    )


def _in_brief(runs: list[str]) -> str:
    return ", ".join(runs) if len(runs) <= _NAMED else f"{', '.join(runs[:_NAMED])} and {len(runs) - _NAMED} more"


def made_elsewhere(config: Config, folder: Path, here: Conditions) -> list[str]:
    """A sentence for each difference between the conditions of recorded runs and those here, with what to do."""
    groups: dict[str, list[str]] = {}
    for name, seed in config.runs():
        files = RunFiles(folder, name, seed)
        if not files.training.exists():
            continue
        recorded = Conditions.of_weights(files.conditions, Trained.read(files.training).weights_sha256)
        if recorded is None:
            groups.setdefault("under conditions that are not recorded", []).append(files.id)
            continue
        found = changed(recorded, here, config.training.numerics == "portable")
        if found:
            parts = [f"{title(key)} {then}, here {now}" for key, (then, now) in found.items()]
            groups.setdefault(f"with {'; '.join(parts)}", []).append(files.id)
    return [
        f"{', '.join(runs)}: recorded {how}: `dvc repro -f -s {' '.join(f'train@{run}' for run in runs)}`, then "
        f"`dvc repro`, trains {'them' if len(runs) > 1 else 'it'} again here"
        for how, runs in groups.items()
    ]


def changed(recorded: Conditions, here: Conditions, portable: bool) -> dict[str, tuple[Any, Any]]:
    """As `differences`, of the conditions that can change a number."""
    packages = {name: here.packages.get(name) for name in recorded.packages}  # other runs may need more
    modules = {name: here.modules.get(name) for name in recorded.modules}
    found = differences(recorded, here.model_copy(update={"packages": packages, "modules": modules}))
    return {name: pair for name, pair in found.items() if name not in _ignored(portable)}


def _ignored(portable: bool) -> set[str]:
    """Threads are a parameter, the same for all runs; `portable` has the same bits on every make of CPU."""
    return {*_WATCHING, "threads", *(("cpu",) if portable else ())}


def title(name: str) -> str:
    """How a person reads a flat name."""
    return _TITLES.get(name, name.removeprefix("packages.").removeprefix("variables."))


def flat(conditions: Conditions) -> dict[str, Any]:
    """Name → value, those of packages and variables as `packages.torch`; without the weights that they belong to."""
    found: dict[str, Any] = {}
    for key, value in conditions.model_dump(exclude={"weights_sha256"}).items():
        found |= {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return found


def conditions(runs: Iterable[Conditions | None]) -> list[list[str]]:
    """A table of each condition's values, with how many runs were made under it where they differ."""
    found: dict[str, Counter[str]] = {}
    for each in runs:
        for name, value in flat(each).items() if each else ():
            if value is not None:
                found.setdefault(title(name), Counter())[str(value)] += 1
    rows = []
    for name, values in found.items():
        several = len(values) > 1
        shown = (f"{value} ({counted(n, 'run')})" if several else value for value, n in values.items())
        rows.append([name, ", ".join(shown)])
    return [["condition", "value"], *rows]


def parameters(config: Config) -> list[list[str]]:
    """A table of all of params.yaml, with its defaults."""
    rows: list[list[str]] = []
    for key, value in config.model_dump(by_alias=True, mode="json", exclude={"optimizers"}).items():
        own = value.items() if isinstance(value, dict) else ()
        rows += [[f"{key}.{name}", _plainly(each)] for name, each in own] or [[key, _plainly(value)]]
    for name, spec in config.optimizers.items():
        entry = spec.model_dump(by_alias=True, mode="json", exclude_defaults=True)
        rows.append([f"optimizers.{name}", _plainly(entry)])
    return [["parameter", "value"], *rows]


def _plainly(value: Any) -> str:
    """A value much as YAML has it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plainly(each)}" for key, each in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_plainly, value))}]"
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _likelihood(name: str) -> tuple[int, str]:
    return [*CAUSES, name.split(".")[0]].index(name.split(".")[0]), name
