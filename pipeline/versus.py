"""Stage compare of a pipeline that `optlab versus` has written: its first optimizer beside those of a study.

Usage: python pipeline/versus.py STUDY
"""

import os
from pathlib import Path

from optlab.config import parameters, reading
from optlab.system import errors, processes, repository


def main() -> None:
    processes.follow_caller()
    (study,) = processes.arguments("STUDY")
    folder = repository.enter()
    settings = reading.load(folder / parameters.PARAMS)
    from optlab.execution import versus
    from optlab.record import kept, runs
    from optlab.results import report, tables

    for name, seed in settings.runs():
        kept.restore(runs.RunFiles(folder, name, seed))
    compared = versus.collect(settings, folder, Path(os.path.normpath(folder / study)))
    report.write(compared, folder)
    print(tables.describe(compared, folder))


if __name__ == "__main__":
    errors.run(main)
