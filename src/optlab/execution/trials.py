"""The trials of one optimizer's tuning, side by side."""

import contextlib
import functools
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from optlab.config.entries import OptimizerSpec
from optlab.config.parameters import Config
from optlab.execution import pools
from optlab.execution.orders import Order, Pool
from optlab.record import contents
from optlab.record.contents import Chosen, Trials, TrialStatus
from optlab.record.runs import TuningFiles
from optlab.results import statistics
from optlab.system import files, locks, processes
from optlab.system.errors import BusyError, RecordError, RunsFailedError, StorageError, say
from optlab.system.wording import fold, terminal_width
from optlab.tuning import choice, search
from optlab.tuning.defaults import defaults_of
from optlab.tuning.search import Tasks, Told, Trial
from optlab.tuning.task import CONDITIONS, TRIALS, Result, Task, lock_name

PROGRAM = "optlab.tuning.trial"


def tune(config: Config, folder: Path, name: str, pool: Pool | None = None) -> None:
    """Look for the values of an optimizer's ranges, and write what was chosen.

    What an interrupted call, or an earlier one with fewer trials, has trained is not trained again.

    Args:
        pool: who trains the trials; default: the cores of this machine.

    Raises:
        RunsFailedError: a trial was killed, or fails where it is not the optimizer's doing.
        StorageError: a result cannot be written.
    """
    spec, place = config.optimizer(name), TuningFiles(folder, name)
    modules = choice.modules(config.paths(name))
    trials, studies = [], []
    with contextlib.nullcontext(pool) if pool else pools.pool(config, folder) as pool:
        work = Work(config, name, spec, modules, _recorded(place.trials), pool)
        print(fold(_budget(config, name), terminal_width()), flush=True)
        for number in range(config.tuning.studies):
            own: list[Trial] = []
            work.follow(search.study(number, spec.ranges, config.tuning, config.steps, config.seeds, own))
            studies.append(choice.chosen(spec, own, config.steps))
            trials += own
            print(_told(name, number, studies[-1], config), flush=True)
        grid = _sensitivity(work, search.best([each for each in trials if each.study == 0], config.steps))
    recorded, besides = [[work.record(each) for each in part] for part in (trials, grid)]
    choice.write(place, studies, modules, recorded, besides)
    if work.conditions:
        files.write(choice.conditions_of(folder, name), work.conditions)
    for each in (*recorded, *besides):
        clean(each.key)


def clean(key: str) -> None:
    """Remove the checkpoints and the lock of a trial, but not its results; nothing while another pipeline trains it."""
    name = lock_name(key)
    with contextlib.suppress(BusyError, StorageError), locks.holding(name):
        for left in TRIALS.glob(f"*/{key}/*/"):
            shutil.rmtree(left, ignore_errors=True)
        locks.forget(name)


def _sensitivity(work: "Work", chosen: Trial | None) -> list[Trial]:
    """The grid over the learning rate about the first study's choice, if it is asked for; the default has none."""
    config, key, found = work.config, search.learning_rate(work.spec.ranges), list[Trial]()
    grid = config.tuning.sensitivity
    if grid and key and chosen and key in chosen.values:
        work.follow(search.sensitivity(key, chosen, grid, config.tuning, config.steps, config.seeds, found))
    return found


def _recorded(path: Path) -> dict[str, contents.Trial]:
    """Key → trial of those that are on record."""
    try:
        found = Trials.read(path)
        return {each.key: each for each in (*found.trials, *found.sensitivity)}
    except RecordError:
        return {}


def _budget(config: Config, name: str) -> str:
    """What a tuning will take, before it begins."""
    tuning, steps = config.tuning, config.steps
    total = _cost(config)
    parts = ", ".join(f"{end:,}" for end in search.rungs(steps, tuning.halving))
    return (
        f"{name}: {tuning.studies * (tuning.trials + 1)} trials to step {parts}: at most "
        f"{total * config.training.batch_size:,} images, as many as {total / steps:.1f} whole runs; {_shows(config)}"
    )


def _cost(config: Config) -> int:
    """The steps of a tuning, at most."""
    tuning, grid = config.tuning, config.tuning.sensitivity
    besides = grid.points * grid.seeds * config.steps if grid else 0
    return tuning.studies * search.cost(tuning, config.steps) + besides


def _shows(config: Config) -> str:
    """What the runs that confirm the choice will be able to show."""
    n, pairs = config.independent, math.comb(len(config.optimizers), 2)
    said = f"{len(config.seeds)} run{'s' if len(config.seeds) > 1 else ''} with other seeds confirm the choice"
    if n < 2 or not pairs:
        return said
    least = statistics.detectable(n, pairs)
    return f"{said}, and show differences of {least:.1f} standard deviations between paired runs, or more"


def _told(name: str, number: int, found: Chosen, config: Config) -> str:
    study = f", study {number + 1} of {config.tuning.studies}" if config.tuning.studies > 1 else ""
    if found.validation_accuracy is None:
        return f"{name}{study}: every trial diverged, the default as well"
    which = "the default" if found.trial is None else f"trial {found.trial}"
    spec = OptimizerSpec.model_validate(found.entry)
    values = ", ".join(f"{key} {value}" for key, value in spec.hyperparameters.items())
    return f"{name}{study}: {which} is the best, validation accuracy {found.validation_accuracy:.2%}: {values}"


@dataclass
class Work:
    """Trains what a search asks for, unless its result is known.

    Attributes:
        modules: of custom/ that the optimizer uses, as in `Choice`.
        recorded: key → trial of an earlier tuning.
        pool: who trains them.
        conditions: the file of those that were in force where a trial was trained last; empty while none was.
    """

    config: Config
    name: str
    spec: OptimizerSpec
    modules: dict[str, str]
    recorded: dict[str, contents.Trial]
    pool: Pool
    conditions: bytes = b""
    _far: dict[tuple[int, int, int], int] = field(default_factory=dict)  # study, index, seed → steps
    _trained: int = 0
    _seconds: float = 0.0

    @functools.cached_property
    def _machine(self) -> str:
        return self.pool.machine()

    def follow(self, studied: search.Search) -> None:
        """Until the search has nothing more to ask."""
        tasks = next(studied, None)
        while tasks is not None:
            missing = [each for each in tasks if self._known(*each) is None]
            if missing:
                self._train(missing)
            self._count(tasks, missing)
            told = [self._result(*each) for each in tasks]
            print(self._said(told, len(missing)), flush=True)
            try:
                tasks = studied.send(told)
            except StopIteration:
                return

    def _train(self, tasks: Tasks) -> None:
        began = time.monotonic()
        _train([self._order(*each) for each in tasks], self.pool, self.name)
        self._seconds += time.monotonic() - began
        for trial, until in tasks:
            result = self._left_by(trial, until)
            if result and result.reason:
                say(f"{self.name}: {_which(trial)} failed: {result.reason}")
        trial, until = tasks[-1]
        with contextlib.suppress(OSError):  # it broke down before it had them
            self.conditions = self._place(self._key(trial), until).with_name(CONDITIONS).read_bytes()

    def _result(self, trial: Trial, until: int) -> "contents.Validation | search.Ending":
        found = self._known(trial, until)
        assert found is not None  # it was just trained
        return found

    def _count(self, tasks: Tasks, missing: Tasks) -> None:
        """How far all trials are, and how many steps of that were trained now."""
        for task in tasks:
            trial, until = task
            which = trial.study, trial.index, trial.seed
            self._trained += until - self._far.get(which, 0) if task in missing else 0
            self._far[which] = until

    def _left(self) -> str:
        """How long the rest takes at the speed so far."""
        rest = max(0, _cost(self.config) - sum(self._far.values()))
        seconds = rest * self._seconds / self._trained if self._trained else 0.0
        return f"; at most {seconds / 60:.0f} min left" if seconds >= 30 else ""

    def _said(self, told: Told, trained: int) -> str:
        """What a round has come to."""
        looks = [each for each in told if isinstance(each, contents.Validation)]
        at = min((each.step for each in looks), default=0)  # the default goes to the end at once
        seen = [each.accuracy for each in looks if each.step == at and each.accuracy is not None]
        best = f"best validation accuracy at step {at:,}: {max(seen):.2%}" if seen else "all diverged"
        kept = f" ({len(told) - trained} known already)" if trained < len(told) else ""
        return f"{self.name}: {len(told)} trial{'s' if len(told) > 1 else ''}{kept}: {best}{self._left()}"

    def _task(self, trial: Trial, until: int) -> Task:
        entry = self.spec.settled(trial.values)
        settled = self.config.model_copy(update={"optimizers": {self.name: entry}})
        return Task.of(settled, self.name, trial.seed, until)

    def _key(self, trial: Trial) -> str:
        return self._task(trial, 0).key(self.modules, self.config.paths(self.name))

    def _order(self, trial: Trial, until: int) -> Order:
        key = self._key(trial)
        place = self._place(key, until)
        asked = place.with_name(f"{until}.task.json")
        files.write(asked, self._task(trial, until).model_dump_json().encode())
        return Order(
            f"{_which(trial)} with seed {trial.seed}", [PROGRAM, str(asked), str(place)], Path(), f"trial-{key}",
            (asked,), (place, place.with_name(CONDITIONS)),
        )  # fmt: skip

    def _place(self, key: str, until: int) -> Path:
        """Where the result of a trial lies, once it was trained so far, on such a machine with these packages."""
        return TRIALS / self._machine / key / f"{until}.json"

    def _known(self, trial: Trial, until: int) -> "contents.Validation | search.Ending | None":
        """What came of a trial, if it was trained so far: now, before an interruption, or in the record."""
        found = self._left_by(trial, until)
        if found:
            return found.look or found.ending
        earlier = self.recorded.get(self._key(trial))
        if earlier is None:
            return None
        seen = next((look for look in earlier.looks if look.step == until), None)
        if seen is None and earlier.sought is not None and until >= earlier.sought:
            return "diverged" if earlier.status == "diverged" else "failed"
        return seen

    def _left_by(self, trial: Trial, until: int) -> Result | None:
        return Result.of(self._place(self._key(trial), until))

    def record(self, trial: Trial) -> contents.Trial:
        """As it is written."""
        is_default = trial.index == search.DEFAULT
        return contents.Trial(
            study=trial.study, index=None if is_default else trial.index, seed=trial.seed,
            values=defaults_of(self.spec) if is_default else trial.values, beyond=trial.beyond,
            status=self._status(trial), looks=trial.looks, sought=trial.sought, key=self._key(trial),
        )  # fmt: skip

    def _status(self, trial: Trial) -> TrialStatus:
        if trial.ending:
            return trial.ending
        return "completed" if trial.looks[-1].step == self.config.steps else "stopped"


def _which(trial: Trial) -> str:
    return "the default" if trial.index == search.DEFAULT else f"trial {trial.index}"


def _train(orders: list[Order], pool: Pool, name: str) -> None:
    """Train all of them.

    Raises:
        RunsFailedError: one has left no result; the others are trained first.
    """
    waiting, working = list(orders), 0
    failed: list[str] = []
    with processes.terminable(), tqdm(total=len(orders), desc=f"{name}: trials", disable=None, leave=False) as bar:
        try:
            while waiting or working:
                while waiting and pool.has_room():
                    pool.start(waiting.pop(0))
                    working += 1
                job = pool.ended()
                working -= 1
                bar.update()
                if job.status:
                    failed.append(f"{job.name}: {job.why()}")
        except BaseException:
            pool.stop()
            raise
    if failed:
        raise RunsFailedError(
            f"{name}: {len(failed)} of {len(orders)} trials failed ({failed[0]}): mend it, then repeat the command: "
            f"those that ended well are kept"
        )
