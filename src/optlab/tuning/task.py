"""What a trial's process is told, and what it answers."""

import functools
import hashlib
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from optlab.config.parameters import Config
from optlab.record.contents import Validation
from optlab.system import repository
from optlab.tuning.search import Ending

TRIALS = Path(".optlab") / "trials"  # machine / key / step.json, and a checkpoint while it may go on
CONDITIONS = "conditions.json"  # beside a result: under what it was trained last

_DECIDES = re.compile(r"(training/|record/|data/dataset|config/(entries|parameters|ranges)|tuning/(task|trial))")


class Task(BaseModel):
    """What is to be trained.

    Attributes:
        config: settled: the optimizer has no range.
        until: after how many steps it stops.
    """

    model_config = ConfigDict(frozen=True)

    config: dict[str, Any]
    optimizer: str
    seed: int
    until: int

    @classmethod
    def of(cls, config: Config, optimizer: str, seed: int, until: int) -> "Task":
        """A task for one optimizer of a settled configuration."""
        alone = {"optimizers": {optimizer: config.optimizer(optimizer)}, "seeds": [seed]}
        dumped = config.model_copy(update=alone).model_dump(mode="json", by_alias=True, exclude={"tuning", "verdict"})
        return cls(config=dumped, optimizer=optimizer, seed=seed, until=until)

    def key(self, modules: dict[str, str], paths: list[str]) -> str:
        """A digest of all that decides the trial but how far it goes and the machine; 32 hexadecimal digits.

        Args:
            modules: as in `Choice`.
            paths: as `Config.paths` has them: the versions of their packages, of torch and of torchvision count.
        """
        used = {"torch", "torchvision", *(each.partition(".")[0] for each in paths if "." in each)}
        versions = {name: _version(name) for name in sorted(used)}
        decides = {"task": self.model_dump(exclude={"until"}), "modules": modules, "code": _code(), "with": versions}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


class Result(BaseModel):
    """What came of it: a look at the validation split, or why there is none.

    Attributes:
        reason: of a failure, in one line.
    """

    model_config = ConfigDict(frozen=True)

    look: Validation | None = None
    ending: Ending | None = None
    reason: str | None = None

    @classmethod
    def of(cls, path: Path) -> "Result | None":
        """What a trial's process has written there, if it has."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None


def lock_name(key: str) -> str:
    """Of the lock that a trial's process holds; a copy of the repository trains its trials for itself."""
    return repository.of_this_tree(f"trial-{key}")


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a module of one's own, or a package of another name
        return None


@functools.cache
def _code() -> dict[str, str]:
    """Path → SHA-256 of this package's modules that decide a trial."""
    package = Path(__file__).parents[1]
    found = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(found.items())
        if _DECIDES.match(name)
    }
