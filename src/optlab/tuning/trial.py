"""One trial, in a process of its own: trained up to a step, from where it stopped before."""

import contextlib
import sys
from pathlib import Path

from optlab.config.parameters import Config
from optlab.data import dataset
from optlab.data.dataset import Split
from optlab.record.contents import Validation
from optlab.system import errors, files, locks, processes, repository
from optlab.system.errors import ConfigError, RunsFailedError, StepError
from optlab.training import checkpoint, conditions, loop
from optlab.training.loop import Outcome
from optlab.training.stepping import Stepper
from optlab.tuning import choice
from optlab.tuning.task import CONDITIONS, Result, Task, lock_name


class PausedError(Exception):
    """A trial has gone as far as it is to go now."""


class Saver(checkpoint.Checkpoint):
    """Saves now and then, and where the trial pauses, after so many steps; there it looks at the validation split.

    Attributes:
        seen: what it saw there.
    """

    def __init__(self, folder: Path, until: int, validation: Split) -> None:
        super().__init__(folder, lambda: None)
        self._until, self._validation = until, validation
        self.seen: Validation | None = None

    def restore(self, outcome: Outcome, stepper: Stepper) -> bool:
        """As `Checkpoint.restore`; what is further than this trial is to go now does not count."""
        for path in self.saved():
            steps = path.name.partition("-")[0]
            if steps.isdecimal() and int(steps) > self._until:
                path.unlink()
        found = super().restore(outcome, stepper)
        if sum(map(len, outcome.step_losses)) == self._until:  # a kill came between the checkpoint and the look
            self._pause(outcome, stepper)
        return found

    def after_step(self, outcome: Outcome, stepper: Stepper) -> None:
        if sum(map(len, outcome.step_losses)) < self._until:
            super().after_step(outcome, stepper)
            return
        with contextlib.suppress(ValueError):  # its state cannot be saved: it begins anew each time
            self.save(outcome, stepper)
        self._pause(outcome, stepper)

    def _pause(self, outcome: Outcome, stepper: Stepper) -> None:
        stepper.eval()
        self.seen = loop.look(self._until, outcome.model, self._validation)
        raise PausedError


def main() -> None:
    """Train what the file named by the first argument says, and write the result to the second.

    Where another process trains the same trial, this one waits for it, and takes what it comes to.

    Raises:
        RunsFailedError: the code is not what the tuning began with.
    """
    processes.follow_caller()
    task = Task.model_validate_json(Path(sys.argv[1]).read_bytes())
    place = Path(sys.argv[2])
    key = place.parent.name
    with processes.terminable(), locks.waiting(lock_name(key)):
        if Result.of(place):  # of another pipeline that has the same trial
            return
        _check_code(task, key)
        result = train(task, place.parent)
        _check_code(task, key)
        files.write(place, result.model_dump_json().encode())


def _check_code(task: Task, key: str) -> None:
    """Refuse to train, or to record, by other code than the tuning began with: it may be changed back meanwhile.

    Raises:
        RunsFailedError: it is other code.
    """
    paths = Config.model_validate(task.config).paths(task.optimizer)
    if task.key(choice.modules(paths), paths) != key:
        raise RunsFailedError("the code has changed since the tuning began, so nothing is recorded of this trial")


def train(task: Task, folder: Path) -> Result:
    """Train, from the checkpoint in the folder if there is one, and leave one there."""
    dataset.forbid_test("a trial must not see it")
    config = Config.model_validate(task.config)
    device = conditions.apply(config.training)
    splits = dataset.load(repository.DATA, config.data, task.seed)
    in_force = conditions.current(device, config.paths(task.optimizer))
    in_force.write(folder / CONDITIONS)
    own = folder / checkpoint.key(config, task.optimizer, task.seed, in_force)
    until = task.until if task.until < config.steps else config.steps + 1
    saver = Saver(own, until, splits.validation.to(device))
    try:
        outcome = loop.train(config, task.optimizer, task.seed, splits, device, saver=saver)
    except PausedError:
        look = saver.seen
    except (StepError, ConfigError) as error:  # beyond the edge of a range, a class may refuse the value
        return Result(ending="failed", reason=str(error))
    else:
        look = outcome.validations[-1] if outcome.status == "completed" else None
    return Result(look=look) if look and look.accuracy is not None else Result(ending="diverged")


if __name__ == "__main__":
    errors.run(main)
