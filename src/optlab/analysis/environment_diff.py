"""Where numbers came from: which conditions differ between two runs, and among the runs of one table."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from optlab.analysis.translation import join_items, join_phrases, translate, translate_count
from optlab.records import Environment, RunFiles, TrainRecord
from optlab.schema.parameters import Config
from optlab.system.text import format_place

# Likeliest cause first: what changes the bits most often when it differs.
CONDITION_PRIORITY = (
    "variables",
    "cpu_capability",
    "onednn_isa",
    "threads",
    "device",
    "packages",
    "cpu",
    "python",
    "platform",
)

# They watch a training and decide no number. What an upgrade of theirs does is not to make a record look mixed.
_IGNORED_PACKAGES = ("packages.mlflow", "packages.dvc")
_DISPLAY_NAMES = {
    "cpu_capability": "CPU capability",
    "onednn_isa": "oneDNN's instructions",
    "cpu": "CPU",
    "python": "Python",
}
_CONDITIONS = "conditions"  # title of all of them, where none are recorded
NOT_RECORDED = "not recorded"
_MAX_LISTED_RUNS = 4  # runs, in a sentence


def diff_environments(recorded: Environment | None, here: Environment) -> dict[str, tuple[Any, Any]]:
    """Flat name → (recorded, here) of what differs, the likely cause first."""
    if recorded is None:
        return {_CONDITIONS: (NOT_RECORDED, "recorded")}
    before, after = flatten_environment(recorded), flatten_environment(here)
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return {name: (before.get(name), after.get(name)) for name in sorted(names, key=_rank_condition)}


def find_differing_conditions(
    runs: Mapping[str, Environment | None], portable: bool
) -> dict[str, dict[str, list[str]]]:
    """What the runs of one table do not share: title of a condition → its value as text → the runs made under it.

    Args:
        runs: id → its conditions, None where none are recorded for these weights.
        portable: whether the bits are the same on every make of CPU, which then is no condition of them.
    """
    known = {run: flatten_environment(each) for run, each in runs.items() if each is not None}
    names = sorted(
        {name for each in known.values() for name in each} - _get_ignored_conditions(portable), key=_rank_condition
    )
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        groups: dict[str, list[str]] = {}
        for run, each in known.items():
            if name not in each and name.startswith(("packages.", "modules.")):
                continue  # it has no use for it: one optimizer's own package is no condition of the others
            groups.setdefault(str(each.get(name, NOT_RECORDED)), []).append(run)
        if len(groups) > 1:
            found[format_condition_name(name)] = groups
    missing = [run for run in runs if run not in known]
    if missing:
        found[_CONDITIONS] = {NOT_RECORDED: missing}
    return found


def describe_differences(differing: Mapping[str, Mapping[str, list[str]]]) -> str:
    """The mixture in words."""
    parts = [
        f"{_translate_known(name)} "
        + join_phrases(
            translate("{value} ({share})", value=_translate_known(value), share=_format_runs(runs))
            for value, runs in groups.items()
        )
        for name, groups in differing.items()
    ]
    template = (
        "Not all runs are known to have been made under the same conditions, so a difference between them need not be "
        "the optimizer's: {differences}. `optlab check` names those to train again here."
    )
    return translate(template, differences=join_items(parts))


def _translate_known(text: str) -> str:
    """Return what is not a name or a value of the record in the current language."""
    return translate(text) if text in (_CONDITIONS, NOT_RECORDED) else text


def _format_runs(runs: list[str]) -> str:
    return (
        ", ".join(runs)
        if len(runs) <= _MAX_LISTED_RUNS
        else translate(
            "{runs} and {count} more", runs=", ".join(runs[:_MAX_LISTED_RUNS]), count=len(runs) - _MAX_LISTED_RUNS
        )
    )


def describe_stale_runs(
    config: Config, folder: Path, here: Environment, kept: Collection[str] | None = None
) -> list[str]:
    """A sentence for each difference between the conditions of recorded runs and those here, with what to do.

    Args:
        kept: ids of the runs that are not about to be trained again; default: all.
    """
    groups, where = dict[str, list[str]](), format_place(folder)
    for name, seed in config.list_runs():
        files = RunFiles(folder, name, seed)
        if not files.training.exists() or (kept is not None and files.id not in kept):
            continue
        recorded = Environment.read_for_weights(files.environment, TrainRecord.read(files.training).weights_sha256)
        if recorded is None:
            groups.setdefault("under conditions that are not recorded", []).append(files.id)
            continue
        found = diff_relevant_conditions(recorded, here, config.training.numerics == "portable")
        if found:
            parts = [f"{format_condition_name(key)} {then}, here {now}" for key, (then, now) in found.items()]
            groups.setdefault(f"with {'; '.join(parts)}", []).append(files.id)
    return [
        f"{_format_runs(runs)}: recorded {how}: `dvc repro -f -s {_list_train_stages(runs)}`, then `dvc repro`{where}, "
        f"trains {'it' if len(runs) == 1 else 'them' if len(runs) <= _MAX_LISTED_RUNS else 'all runs'} again here"
        for how, runs in groups.items()
    ]


def _list_train_stages(runs: list[str]) -> str:
    """Return the train stages of a few runs; for more, the stage `train`, which covers every run."""
    return " ".join(f"train@{run}" for run in runs) if len(runs) <= _MAX_LISTED_RUNS else "train"


def diff_relevant_conditions(recorded: Environment, here: Environment, portable: bool) -> dict[str, tuple[Any, Any]]:
    """As `diff_environments`, of the conditions that can change a number."""
    packages = {name: here.packages.get(name) for name in recorded.packages}  # other runs may need more
    modules = {name: here.modules.get(name) for name in recorded.modules}
    found = diff_environments(recorded, here.model_copy(update={"packages": packages, "modules": modules}))
    return {name: pair for name, pair in found.items() if name not in _get_ignored_conditions(portable)}


def _get_ignored_conditions(portable: bool) -> set[str]:
    """Threads are a parameter, the same for all runs; `portable` has the same bits on every make of CPU."""
    return {*_IGNORED_PACKAGES, "threads", *(("cpu",) if portable else ())}


def format_condition_name(name: str) -> str:
    """How a person reads a flat name."""
    return _DISPLAY_NAMES.get(name, name.removeprefix("packages.").removeprefix("variables."))


def flatten_environment(conditions: Environment) -> dict[str, Any]:
    """Name → value, those of packages and variables as `packages.torch`; without the weights that they belong to."""
    found: dict[str, Any] = {}
    for key, value in conditions.model_dump(exclude={"weights_sha256"}).items():
        found |= {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return found


def build_environment_table(runs: Iterable[Environment | None]) -> list[list[str]]:
    """A table of each condition's values, with how many runs were made under it where they differ."""
    found: dict[str, Counter[str]] = {}
    for each in runs:
        for name, value in flatten_environment(each).items() if each else ():
            if value is not None:
                found.setdefault(format_condition_name(name), Counter())[str(value)] += 1
    rows = []
    for name, values in found.items():
        several = len(values) > 1
        shown = (f"{value} ({translate_count(n, 'run')})" if several else value for value, n in values.items())
        rows.append([name, ", ".join(shown)])
    return [[translate("condition"), translate("value")], *rows]


def build_parameter_table(config: Config) -> list[list[str]]:
    """A table of all of params.yaml, with its defaults."""
    rows: list[list[str]] = []
    for key, value in config.model_dump(by_alias=True, mode="json", exclude={"optimizers"}).items():
        own = value.items() if isinstance(value, dict) else ()
        rows += [[f"{key}.{name}", _format_value(each)] for name, each in own] or [[key, _format_value(value)]]
    for name, spec in config.optimizers.items():
        entry = spec.model_dump(by_alias=True, mode="json", exclude_defaults=True)
        rows.append([f"optimizers.{name}", _format_value(entry)])
    return [[translate("parameter"), translate("value")], *rows]


def _format_value(value: Any) -> str:
    """A value much as YAML has it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_format_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _rank_condition(name: str) -> tuple[int, str]:
    return [*CONDITION_PRIORITY, name.split(".")[0]].index(name.split(".")[0]), name
