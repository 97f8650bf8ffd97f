"""One training of a search, in a process of its own: its request, its result, and the program that runs it.

A trial is trained up to a step, and resumed from its checkpoint when the search wants it to go further.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
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
from optlab.system import errors, files, locks, processes, repository, source_code
from optlab.system.errors import ConfigError, RunsFailedError, StepError
from optlab.training import checkpoint, determinism, loop
from optlab.training.loop import TrainResult
from optlab.training.optimizer_driver import OptimizerDriver
from optlab.tuning.search import TrialFailure

TRIALS_FOLDER = Path(".optlab") / "trials"  # machine / key / step.json, and a checkpoint of an unfinished trial
ENVIRONMENT_FILE = "conditions.json"  # beside a result: the environment of the process that wrote it


class TrialRequest(BaseModel):
    """Everything that decides a trial but the machine.

    Attributes:
        config: one optimizer without a range, and one seed; as params.yaml has it.
        until: number of the step after which the trial stops.
        code: name → SHA-256, as of `source_code.hash_code`.
        packages: name → version of torch, torchvision and the packages of the classes; None for a user's own module.
    """

    model_config = ConfigDict(frozen=True)

    config: dict[str, Any]
    optimizer: str
    seed: int
    until: int
    code: dict[str, str]
    packages: dict[str, str | None]

    @classmethod
    def from_config(
        cls, config: Config, optimizer: str, seed: int, until: int, code: Mapping[str, str]
    ) -> "TrialRequest":
        """Return the request for one optimizer of a configuration, without a range."""
        alone = {"optimizers": {optimizer: config.get_optimizer(optimizer)}, "seeds": [seed]}
        not_trained: dict[str, Any] = {"tuning": True, "verdict": True, "data": {"mirror_test"}}
        dumped = config.model_copy(update=alone).model_dump(mode="json", by_alias=True, exclude=not_trained)
        packages = {each.partition(".")[0] for each in config.list_class_paths(optimizer) if "." in each}
        return cls(
            config=dumped,
            optimizer=optimizer,
            seed=seed,
            until=until,
            code=dict(code),
            packages=_find_versions({"torch", "torchvision", *packages}),
        )

    def compute_key(self) -> str:
        """Return a digest of all but `until`: 32 hexadecimal digits of a SHA-256."""
        content = json.dumps(self.model_dump(exclude={"until"}), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def check_code(self) -> None:
        """Check that code and packages are still those of the request: an edit may be undone before the tuning ends.

        Raises:
            RunsFailedError: they are not.
        """
        if source_code.find_changed(self.code) or _find_versions(self.packages) != self.packages:
            raise RunsFailedError("the code has changed since the tuning began, so nothing is recorded of this trial")


def _find_versions(packages: Iterable[str]) -> dict[str, str | None]:
    versions: dict[str, str | None] = dict.fromkeys(sorted(packages))
    for name in versions:
        with contextlib.suppress(PackageNotFoundError):  # a user's module, or a package of another name
            versions[name] = version(name)
    return versions


class TrialResult(BaseModel):
    """Outcome of a trial at a step: metrics of the validation split, or how it failed.

    Attributes:
        look: metrics; of a trial that diverged the step alone.
        reason: of a failure, in one line.
    """

    model_config = ConfigDict(frozen=True)

    look: ValidationMetrics | None = None
    ending: TrialFailure | None = None
    reason: str | None = None

    @classmethod
    def load_if_present(cls, path: Path) -> "TrialResult | None":
        """Return the result in a file, or None without a valid one."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None


def get_lock_name(key: str) -> str:
    """Return the name of the lock that a trial's process holds, which a copy of the repository does not share."""
    return repository.add_copy_suffix(f"trial-{key}")


class PausedError(Exception):
    """Ends the training of a trial at its last step for now."""


class TrialCheckpointer(checkpoint.FileCheckpointer):
    """Checkpointer that also saves, validates and ends the training at a given step.

    Attributes:
        validation: metrics at that step.
    """

    def __init__(self, folder: Path, until: int, validation: Split) -> None:
        super().__init__(folder, lambda: None)
        self._until, self._validation = until, validation
        self.validation: ValidationMetrics | None = None

    def restore(self, result: TrainResult, driver: OptimizerDriver) -> bool:
        """Restore as `FileCheckpointer.restore` does, from a checkpoint of this trial's last step at most."""
        for path in self.list_files():
            steps = path.name.partition("-")[0]
            if steps.isdecimal() and int(steps) > self._until:
                path.unlink()
        is_restored = super().restore(result, driver)
        if sum(map(len, result.step_losses)) == self._until:  # killed between checkpoint and validation
            self._pause(result, driver)
        return is_restored

    def on_step_end(self, result: TrainResult, driver: OptimizerDriver) -> None:
        if sum(map(len, result.step_losses)) < self._until:
            super().on_step_end(result, driver)
            return
        with contextlib.suppress(ValueError):  # a state that cannot be saved: the trial restarts each time
            self.save(result, driver)
        self._pause(result, driver)

    def _pause(self, result: TrainResult, driver: OptimizerDriver) -> None:
        driver.eval()
        self.validation = loop.validate(self._until, result.model, self._validation)
        raise PausedError


def main() -> None:
    """Train the trial that the file of the first argument requests, and write its result to the second.

    If another process trains the same trial, this one waits for it and keeps its result.

    Raises:
        RunsFailedError: the code is not that of the request.
    """
    processes.exit_with_caller()
    request = TrialRequest.model_validate_json(Path(sys.argv[1]).read_bytes())
    result_path = Path(sys.argv[2])
    with processes.interrupt_on_sigterm(), locks.wait_for_lock(get_lock_name(result_path.parent.name)):
        if TrialResult.load_if_present(result_path):  # of another pipeline that has the same trial
            return
        request.check_code()
        result = train_trial(request, result_path.parent)
        request.check_code()
        files.write_atomic(result_path, result.model_dump_json().encode())


def train_trial(request: TrialRequest, folder: Path) -> TrialResult:
    """Train a trial, from its checkpoint in the folder if there is one, and leave one there."""
    cifar10.forbid_test_split("a trial must not see it")
    config = Config.model_validate(request.config)
    device = determinism.configure_torch(config.training)
    splits = cifar10.load(repository.DATA, config.data, request.seed)
    environment = capture_environment(device, config.list_class_paths(request.optimizer))
    environment.write(folder / ENVIRONMENT_FILE)
    fingerprint = checkpoint.compute_fingerprint(config, request.optimizer, request.seed, environment, request.code)
    until = request.until if request.until < config.total_steps else config.total_steps + 1
    checkpointer = TrialCheckpointer(folder / fingerprint, until, splits.validation.to(device))
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
        if validation is None:
            steps = sum(map(len, result.step_losses))
            validation = ValidationMetrics(step=steps, loss=None, accuracy=None)
    assert validation is not None  # of the pause
    return TrialResult(look=validation, ending="diverged" if validation.accuracy is None else None)


if __name__ == "__main__":
    errors.run_main(main)
