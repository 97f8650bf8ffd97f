"""What a trial's process is told, and what it answers.

One trial, in a process of its own: trained up to a step, from where it stopped before.
"""

import contextlib
import functools
import hashlib
import json
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from optlab.data import cifar10
from optlab.data.cifar10 import Split
from optlab.environment import capture_environment
from optlab.preflight import error_attribution
from optlab.records import ValidationMetrics
from optlab.schema.parameters import Config
from optlab.system import errors, files, locks, processes, repository
from optlab.system.errors import ConfigError, RunsFailedError, StepError
from optlab.training import checkpoint, determinism, loop
from optlab.training.loop import TrainResult
from optlab.training.optimizer_driver import OptimizerDriver
from optlab.tuning import selection
from optlab.tuning.search import TrialFailure

TRIALS_FOLDER = Path(".optlab") / "trials"  # machine / key / step.json, and a checkpoint while it may go on
ENVIRONMENT_FILE = "conditions.json"  # beside a result: under what it was trained last

_FINGERPRINTED_MODULES = re.compile(r"(training/|records|data/cifar10|schema/|tuning/trial)")


class TrialRequest(BaseModel):
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
    def from_config(cls, config: Config, optimizer: str, seed: int, until: int) -> "TrialRequest":
        """A task for one optimizer of a settled configuration."""
        alone = {"optimizers": {optimizer: config.get_optimizer(optimizer)}, "seeds": [seed]}
        dumped = config.model_copy(update=alone).model_dump(mode="json", by_alias=True, exclude={"tuning", "verdict"})
        return cls(config=dumped, optimizer=optimizer, seed=seed, until=until)

    def compute_key(self, modules: dict[str, str], paths: list[str]) -> str:
        """A digest of all that decides the trial but how far it goes and the machine; 32 hexadecimal digits.

        Args:
            modules: as in `Choice`.
            paths: as `Config.list_class_paths` has them: the versions of their packages, of torch and of torchvision
                count.
        """
        used = {"torch", "torchvision", *(each.partition(".")[0] for each in paths if "." in each)}
        versions = {name: _find_version(name) for name in sorted(used)}
        decides = {
            "task": self.model_dump(exclude={"until"}),
            "modules": modules,
            "code": _hash_code(),
            "with": versions,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


class TrialResult(BaseModel):
    """What came of it: a look at the validation split, or why there is none.

    Attributes:
        reason: of a failure, in one line.
    """

    model_config = ConfigDict(frozen=True)

    look: ValidationMetrics | None = None
    ending: TrialFailure | None = None
    reason: str | None = None

    @classmethod
    def load_if_present(cls, path: Path) -> "TrialResult | None":
        """What a trial's process has written there, if it has."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None


def get_lock_name(key: str) -> str:
    """Of the lock that a trial's process holds; a copy of the repository trains its trials for itself."""
    return repository.add_copy_suffix(f"trial-{key}")


@functools.cache
def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a module of one's own, or a package of another name
        return None


@functools.cache
def _hash_code() -> dict[str, str]:
    """Path → SHA-256 of this package's modules that decide a trial."""
    package = Path(__file__).parents[1]
    found = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(found.items())
        if _FINGERPRINTED_MODULES.match(name)
    }


class PausedError(Exception):
    """A trial has gone as far as it is to go now."""


class TrialCheckpointer(checkpoint.FileCheckpointer):
    """Saves now and then, and where the trial pauses, after so many steps; there it looks at the validation split.

    Attributes:
        validation: what it saw there.
    """

    def __init__(self, folder: Path, until: int, validation: Split) -> None:
        super().__init__(folder, lambda: None)
        self._until, self._validation = until, validation
        self.validation: ValidationMetrics | None = None

    def restore(self, result: TrainResult, driver: OptimizerDriver) -> bool:
        """As `Checkpoint.restore`; what is further than this trial is to go now does not count."""
        for path in self.list_files():
            steps = path.name.partition("-")[0]
            if steps.isdecimal() and int(steps) > self._until:
                path.unlink()
        found = super().restore(result, driver)
        if sum(map(len, result.step_losses)) == self._until:  # a kill came between the checkpoint and the look
            self._pause(result, driver)
        return found

    def on_step_end(self, result: TrainResult, driver: OptimizerDriver) -> None:
        if sum(map(len, result.step_losses)) < self._until:
            super().on_step_end(result, driver)
            return
        with contextlib.suppress(ValueError):  # its state cannot be saved: it begins anew each time
            self.save(result, driver)
        self._pause(result, driver)

    def _pause(self, result: TrainResult, driver: OptimizerDriver) -> None:
        driver.eval()
        self.validation = loop.validate(self._until, result.model, self._validation)
        raise PausedError


def main() -> None:
    """Train what the file named by the first argument says, and write the result to the second.

    Where another process trains the same trial, this one waits for it, and takes what it comes to.

    Raises:
        RunsFailedError: the code is not what the tuning began with.
    """
    processes.exit_with_caller()
    request = TrialRequest.model_validate_json(Path(sys.argv[1]).read_bytes())
    result_path = Path(sys.argv[2])
    key = result_path.parent.name
    with processes.interrupt_on_sigterm(), locks.wait_for_lock(get_lock_name(key)):
        if TrialResult.load_if_present(result_path):  # of another pipeline that has the same trial
            return
        _check_code(request, key)
        result = train_trial(request, result_path.parent)
        _check_code(request, key)
        files.write_atomic(result_path, result.model_dump_json().encode())


def _check_code(request: TrialRequest, key: str) -> None:
    """Refuse to train, or to record, by other code than the tuning began with: it may be changed back meanwhile.

    Raises:
        RunsFailedError: it is other code.
    """
    paths = Config.model_validate(request.config).list_class_paths(request.optimizer)
    if request.compute_key(selection.hash_modules(paths), paths) != key:
        raise RunsFailedError("the code has changed since the tuning began, so nothing is recorded of this trial")


def train_trial(request: TrialRequest, folder: Path) -> TrialResult:
    """Train, from the checkpoint in the folder if there is one, and leave one there."""
    cifar10.forbid_test_split("a trial must not see it")
    config = Config.model_validate(request.config)
    device = determinism.configure_torch(config.training)
    splits = cifar10.load(repository.DATA, config.data, request.seed)
    environment = capture_environment(device, config.list_class_paths(request.optimizer))
    environment.write(folder / ENVIRONMENT_FILE)
    checkpoint_folder = folder / checkpoint.compute_fingerprint(config, request.optimizer, request.seed, environment)
    until = request.until if request.until < config.total_steps else config.total_steps + 1
    checkpointer = TrialCheckpointer(checkpoint_folder, until, splits.validation.to(device))
    try:
        result = loop.train(config, request.optimizer, request.seed, splits, device, checkpointer=checkpointer)
    except PausedError:
        validation = checkpointer.validation
    except StepError as error:
        return TrialResult(ending="failed", reason=str(error))
    except ConfigError as error:  # beyond the edge of a range, a class may refuse the value
        return TrialResult(ending="failed", reason=str(error_attribution.attribute(error)))
    else:
        validation = result.validations[-1] if result.status == "completed" else None
    return (
        TrialResult(look=validation)
        if validation and validation.accuracy is not None
        else TrialResult(ending="diverged")
    )


if __name__ == "__main__":
    errors.run_main(main)
