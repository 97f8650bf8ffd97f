"""What a run is trained with: its optimizer's entry as it was chosen."""

from pathlib import Path

from optlab.records import TuningFiles, TuningResult
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system.errors import RecordError


def load_chosen_config(config: Config, folder: Path, name: str, seed: int) -> tuple[Config, dict[str, str]]:
    """The configuration with the optimizer's entry as it was chosen for the run with that seed.

    Returns:
        it, and tags for MLflow that name the trial that the values come from; none where nothing was tuned.

    Raises:
        RecordError: it has a range, and no value was chosen, or for another entry.
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
    """What MLflow is told of the trial that a run's values are from; nothing where nothing was tuned."""
    if not choice.is_tuned:
        return {}
    number = config.get_study(seed) % len(choice.studies)
    trial = choice.studies[number].trial
    return {"tuned.study": str(number), "tuned.trial": "default" if trial is None else str(trial)}
