"""Stage tune: one optimizer, the seed of one run → the run's hyperparameters, and every trial by which they were found.

Usage: python pipeline/tune.py OPTIMIZER SEED
"""

from optlab.config import loader
from optlab.schema import parameters
from optlab.system import errors, processes, repository
from optlab.training import numerics


def main() -> None:
    processes.exit_with_caller()
    name, number = processes.parse_arguments("OPTIMIZER", "SEED")
    seed = int(number)
    folder = repository.enter_root()
    settings = loader.load(folder / parameters.PARAMS_FILE)
    numerics.prepare(settings.training)  # before anything imports torch
    from optlab.orchestration import preflight_cache
    from optlab.tuning import selection

    preflight_cache.load_or_run(settings)
    if settings.get_optimizer(name).ranges:
        from optlab.orchestration import tuning_session

        tuning_session.tune(settings, folder, name, seed)
    else:
        selection.write_untuned(settings, folder, name, seed)


if __name__ == "__main__":
    errors.run_main(main)
