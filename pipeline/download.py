"""Stage download: the six verified files of the data set under data/."""

from optlab import config, download, errors, optimizers, processes, project


def main() -> None:
    processes.follow_caller()
    folder = project.enter()
    settings = config.load(folder / config.PARAMS)
    optimizers.check(settings)
    print(download.ensure(project.DATA, settings.data.dataset))


if __name__ == "__main__":
    errors.run(main)
