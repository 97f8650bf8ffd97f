"""Stage tune: one optimizer → the values in force, and every trial by which they were found.

Usage: python pipeline/tune.py OPTIMIZER
"""

from optlab.config import parameters, reading
from optlab.system import errors, processes, repository
from optlab.training import numerics


def main() -> None:
    processes.follow_caller()
    (name,) = processes.arguments("OPTIMIZER")
    folder = repository.enter()
    settings = reading.load(folder / parameters.PARAMS)
    numerics.prepare(settings.training)  # before anything imports torch
    from optlab.execution import checked
    from optlab.tuning import choice

    checked.ensure(settings)
    if settings.optimizer(name).ranges:
        from optlab.execution import trials

        trials.tune(settings, folder, name)
    else:
        choice.untuned(settings, folder, name)


if __name__ == "__main__":
    errors.run(main)
