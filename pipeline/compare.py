"""Stage compare: all runs → the table, the figures, the report, and the champion in MLflow's registry."""

from optlab.config import loader
from optlab.schema import parameters
from optlab.system import errors, processes, repository
from optlab.tracking.uploader_client import UploaderClient


def main() -> None:
    processes.exit_with_caller()
    folder = repository.enter_root()
    settings = loader.load(folder / parameters.PARAMS_FILE)
    uploader = UploaderClient()  # it loads MLflow meanwhile
    from optlab import records
    from optlab.analysis import comparison, report, tables
    from optlab.tracking import comparison_sync

    for name, seed in settings.list_runs():
        records.restore_environment(records.RunFiles(folder, name, seed))
    compared = comparison.collect(settings, folder)
    report.write(compared, folder)
    print(tables.describe(compared, folder))
    print(comparison_sync.publish(compared, folder, uploader))
    uploader.close()


if __name__ == "__main__":
    errors.run_main(main)
