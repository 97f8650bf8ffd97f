"""Stage compare of a pipeline that `optlab versus` has written: its first optimizer beside those of a study.

Usage: python pipeline/versus.py STUDY ATTEMPT
"""

import os
from pathlib import Path

from optlab.config import loader
from optlab.schema import parameters
from optlab.system import errors, processes, repository


def main() -> None:
    processes.exit_with_caller()
    study, attempt = processes.parse_arguments("STUDY", "ATTEMPT")
    folder = repository.enter_root()
    settings = loader.load(folder / parameters.PARAMS_FILE)
    from optlab import records
    from optlab.analysis import report, tables
    from optlab.orchestration import attempts, versus

    reference = versus.StudyReference(
        Path(os.path.normpath(folder / study)), int(attempt) if attempt.isdecimal() else 0
    )
    attempts.record(reference.study, versus.read_attempt(settings, folder))
    for name, seed in settings.list_runs():
        records.restore_environment(records.RunFiles(folder, name, seed))
    compared = versus.collect_with_study(settings, folder, reference)
    report.write(compared, folder)
    print(tables.describe(compared, folder))


if __name__ == "__main__":
    errors.run_main(main)
