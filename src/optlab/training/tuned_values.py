"""Values that a tuning has chosen, put into the configuration of a run."""

from pathlib import Path

from optlab.records import TuningFiles, TuningResult
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system.errors import RecordError


def load_chosen_config(config: Config, folder: Path, name: str, seed: int) -> tuple[Config, dict[str, str]]:
    """Return the configuration with the chosen values of the optimizer for the run with this seed.

    Returns:
        the configuration, and tags for MLflow that name the trial of the values; none without a range.

    Raises:
        RecordError: choice.json is missing, damaged, or belongs to another entry.
    """
    spec, path = config.get_optimizer(name), TuningFiles(folder, name).choice
    if not spec.ranges:
        return config, {}
    choice = TuningResult.read(path)
    found = choice.studies[config.get_study(seed) % len(choice.studies)]
    entry = OptimizerSpec.model_validate(found.entry)
    if entry.ranges or entry.class_ != spec.class_:
        raise RecordError(f"{path}: is of another entry than params.yaml has: run `dvc repro`")
    return config.model_copy(update={"optimizers": config.optimizers | {name: entry}}), build_trial_tags(
        config, choice, seed
    )


def build_trial_tags(config: Config, choice: TuningResult, seed: int) -> dict[str, str]:
    """Return MLflow tags that name the trial of a run's values; none if nothing was tuned."""
    if not choice.is_tuned:
        return {}
    number = config.get_study(seed) % len(choice.studies)
    trial = choice.studies[number].trial
    return {"tuned.study": str(number), "tuned.trial": "default" if trial is None else str(trial)}
