"""Stage compare: all runs → the table, the figures, the report, and the champion in MLflow's registry."""

from optlab.config import parameters, reading
from optlab.system import errors, processes, repository
from optlab.tracking.link import Link


def main() -> None:
    processes.follow_caller()
    folder = repository.enter()
    settings = reading.load(folder / parameters.PARAMS)
    sender = Link()  # it loads MLflow meanwhile
    from optlab.record import kept, runs
    from optlab.results import comparison, report, tables
    from optlab.tracking import publish

    for name, seed in settings.runs():
        kept.restore(runs.RunFiles(folder, name, seed))
    compared = comparison.collect(settings, folder)
    report.write(compared, folder)
    print(tables.describe(compared, folder))
    print(publish.publish(compared, folder, sender))
    sender.close()


if __name__ == "__main__":
    errors.run(main)
