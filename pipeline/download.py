"""Stage download: the six verified files of the data set under data/."""

from optlab.config import parameters, reading
from optlab.data import download
from optlab.execution import checked
from optlab.system import errors, processes, repository
from optlab.training import numerics


def main() -> None:
    processes.follow_caller()
    folder = repository.enter()
    settings = reading.load(folder / parameters.PARAMS)
    numerics.prepare(settings.training)  # before anything imports torch
    checked.ensure(settings)
    print(download.ensure(repository.DATA, settings.data.dataset))


if __name__ == "__main__":
    errors.run(main)
