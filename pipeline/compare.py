"""Stage compare: all runs → the table, the figures, the report, and the champion in MLflow's registry."""

from optlab import comparison, config, errors, processes, project, report, views


def main() -> None:
    processes.follow_caller()
    folder = project.enter()
    settings = config.load(folder / config.PARAMS)
    compared = comparison.collect(settings, folder)
    report.write(compared, folder)
    print(report.text_table(compared))
    print(views.publish(compared, folder))


if __name__ == "__main__":
    errors.run(main)
