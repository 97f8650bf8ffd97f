"""Stage download: the six verified files of the data set under data/."""

from optlab.config import loader
from optlab.orchestration import preflight_cache
from optlab.schema import parameters
from optlab.system import errors, processes, repository
from optlab.training import numerics


def main() -> None:
    processes.exit_with_caller()
    folder = repository.enter_root()
    settings = loader.load(folder / parameters.PARAMS_FILE)
    numerics.prepare(settings.training)  # before anything imports torch
    from optlab.data import download

    preflight_cache.load_or_run(settings)
    print(download.ensure_dataset(repository.DATA, settings.data.dataset))


if __name__ == "__main__":
    errors.run_main(main)
