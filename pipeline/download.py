"""Stage download: the six verified files of the data set under data/."""

from optlab import config, download, errors, optimizers, project


def main() -> None:
    folder = project.enter()
    settings = config.load(folder / config.PARAMS)
    optimizers.check(settings)
    print(download.ensure(project.DATA, settings.data.dataset))


if __name__ == "__main__":
    errors.run(main)
