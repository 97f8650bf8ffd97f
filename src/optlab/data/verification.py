"""The data set as a whole, checked once before anything is trained.

python -m optlab.data.verification DATASET
"""

import sys
from pathlib import Path

from optlab.data.cifar10 import DIGESTS, read_verified
from optlab.system import repository


def verify_dataset(folder: Path, dataset: str) -> None:
    """Check every file of a data set against its digest, where the data set is there at all.

    Raises:
        DataError: a file is missing or altered, or belongs to another data set.
    """
    if folder.is_dir():
        for name in DIGESTS[dataset]:
            read_verified(folder, dataset, name)


def main() -> None:
    """Check the data set of the repository that is the working directory."""
    verify_dataset(repository.DATA, sys.argv[1])
