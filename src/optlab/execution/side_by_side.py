"""`dvc repro` with the runs side by side, each on cores of its own, and without a start-up for each stage.

DVC has no such option (treeverse/dvc#755). Here its own code, in this process, says what is stale and records what came
out (`ledger`), and the stages are children of a process that has imported what they need (`warm`). This process has
threads, the display, and DVC: it never forks.
"""

import functools
import os
import queue
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optlab.config.parameters import Config, run_id
from optlab.execution import checked
from optlab.execution.display import Display
from optlab.execution.jobs import Job, Warm
from optlab.system import dvc, locks, processes, progress
from optlab.system.errors import REASON_VARIABLE, ConfigError, OptlabError, RunsFailedError, one_line
from optlab.tracking import link
from optlab.training import numerics

if TYPE_CHECKING:
    from optlab.execution.ledger import Ledger

_STAGES = ("train", "evaluate")
_TAIL = 20  # lines of a child's output


def repro(config: Config, folder: Path, jobs: int) -> None:
    """What `dvc repro` of the pipeline in `folder` does, up to `jobs` runs at a time; the working directory is the top.

    A failed run does not stop the others. dvc.lock ends as plain `dvc repro` leaves it.

    Raises:
        ConfigError: params.yaml cannot be used.
        RunsFailedError: runs failed, or a stage before or after them.
        BusyError: another process does it in this working tree.
    """
    numerics.prepare(config.training)  # the stages' process reads these variables as it starts
    runs = [run_id(name, seed) for name, seed in config.runs()]
    targets = [f"{stage}@{run}" for run in runs for stage in _STAGES]
    tunings = [f"tune@{name}" for name in config.optimizers]
    own = str(os.getpid())
    os.environ |= {link.FOLLOWED_VARIABLE: own, processes.CALLER_VARIABLE: own}
    with locks.holding("repro"), processes.terminable(), Warm(spinning=spins(config, jobs)) as warm:
        link.start(own)
        from optlab.execution.ledger import Ledger  # DVC, while the others load what they need

        ledger = Ledger(folder / "dvc.yaml", [*tunings, *targets])
        if checked.known(config) is None:
            _check(warm, folder)
        _stage(
            ledger if folder == Path() else Ledger(Path("dvc.yaml"), []), warm, "download", "the data could not be had"
        )
        for name in tunings:
            _stage(ledger, warm, name, "a tuning failed")
        with (
            ledger.holding(targets),
            Display(len(runs)) as display,
            tempfile.TemporaryDirectory(prefix="optlab-") as reasons,
        ):
            failures = Crew(ledger, warm, display, Path(reasons)).work(runs, jobs)
        if failures:
            for run, reason in failures.items():
                print(f"{run}: {reason}", file=sys.stderr)
            raise RunsFailedError(
                f"{len(failures)} of {len(runs)} runs failed: {', '.join(failures)}: mend it, then repeat the command: "
                f"it runs these again, and nothing else"
            )
        problem = "the runs are complete, but a stage after them failed"
        _stage(ledger, warm, "compare", problem)
        others = [name for name in ledger.names if name not in (*tunings, *targets)]
        if any(ledger.is_stale(name) for name in others) and processes.run(
            [*dvc.COMMAND, "--wait-for-lock", "repro", "--quiet", ledger.pipeline.as_posix()]
        ):
            raise RunsFailedError(f"{problem}: see above")


def at_once(config: Config) -> int:
    """How many trainings the cores have room for, at least one."""
    return max(1, len(available_cores()) // config.training.threads)


def spins(config: Config, jobs: int) -> bool:
    """Whether a training's threads each have a core, so that they may wait for each other without sleeping."""
    return all(config.training.threads <= len(cores) for cores in cores_for(jobs))


def _check(warm: Warm, folder: Path) -> None:
    """Check all of params.yaml before anything is run.

    Raises:
        ConfigError: it cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="optlab-") as temporary:
        reason = Path(temporary) / "reason"
        job = warm.start("check", ["optlab", "check"], folder, [], {REASON_VARIABLE: str(reason)}, lambda line: False)
        if job.wait():
            raise ConfigError(_told(reason) or _last(job.lines) or job.how())
    for line in job.lines:
        if line.startswith(("warning:", "note:")):
            print(line, end="", file=sys.stderr)


def _stage(ledger: "Ledger", warm: Warm, name: str, problem: str) -> None:
    """Run a stage by itself, if the pipeline has it and it is stale; its output is this process's.

    Raises:
        RunsFailedError: it failed; what it printed says why.
    """
    if name not in ledger.names or not ledger.is_stale(name):
        return
    with ledger.holding([name]):
        if ledger.begin(name):
            words, folder = ledger.command(name)
            job = warm.start(name, words, folder, available_cores(), {})
            try:
                if job.wait():
                    raise RunsFailedError(f"{problem}: {job.reason or 'see above'}")
            except KeyboardInterrupt:
                processes.stop([job])
                raise
            ledger.end(name)


def available_cores() -> list[int]:
    """The cores that this process may use; all of them where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores_for(jobs: int) -> list[set[int]]:
    """The cores of each job: an equal share of those this process may use, at least one."""
    cores = available_cores()
    share = max(1, len(cores) // jobs)
    return [{cores[(job * share + each) % len(cores)] for each in range(share)} for job in range(jobs)]


@dataclass
class Crew:
    """The jobs at work on the runs of one pipeline.

    Attributes:
        reasons: a folder in which each run leaves why it failed.
    """

    ledger: "Ledger"
    warm: Warm
    display: Display
    reasons: Path
    _working: dict[str, tuple[Job, str, set[int]]] = field(default_factory=dict)  # run → job, stage, cores
    _ended: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)
    _failures: dict[str, str] = field(default_factory=dict)

    def work(self, runs: list[str], jobs: int) -> dict[str, str]:
        """Do every run; returns why those failed that did. An interruption stops every child first."""
        free, waiting = cores_for(jobs), list(runs)
        try:
            while waiting or self._working:
                while waiting and free:
                    run, cores = waiting.pop(0), free.pop(0)
                    if not self._go_on(run, _STAGES, cores):
                        free.append(cores)
                if self._working:
                    run = self._ended.get()
                    job, stage, cores = self._working.pop(run)
                    later = _STAGES[_STAGES.index(stage) + 1 :]
                    if self._has_failed(run, job, stage) or not self._go_on(run, later, cores):
                        free.append(cores)
        except BaseException:
            processes.stop([job for job, _, _ in self._working.values()])
            self.display.say("stopped: what is complete is kept, and the next call does the rest")
            raise
        return {run: self._failures[run] for run in runs if run in self._failures}

    def _go_on(self, run: str, stages: Iterable[str], cores: set[int]) -> bool:
        """Start the first of these stages that is stale; False if there is none, and the run has ended."""
        for stage in stages:
            name = f"{stage}@{run}"
            try:
                if not self.ledger.is_stale(name):
                    continue
                if not self.ledger.begin(name):
                    self.display.say(f"{run}  {stage}: as an equal one that DVC has kept")
                    continue
            except (OptlabError, OSError) as error:
                self._fail(run, one_line(error))
                return False
            words, where = self.ledger.command(name)
            environment = {progress.VARIABLE: "lines", REASON_VARIABLE: str(self.reasons / run)}
            show = functools.partial(self.display.show, run)
            job = self.warm.start(run, words, where, sorted(cores), environment, show, self._ended.put)
            self._working[run] = (job, stage, cores)
            return True
        self.display.end(run, None)
        return False

    def _has_failed(self, run: str, job: Job, stage: str) -> bool:
        """Record what a stage that has ended brought, if it ended well."""
        if job.status:
            told = _told(self.reasons / run)
            if not told:  # nothing of ours could say why: show what there is
                self.display.say("".join(job.lines[-_TAIL:]).rstrip())
            self._fail(run, told or _last(job.lines) or job.how())
            return True
        try:
            self.ledger.end(f"{stage}@{run}")
        except (OptlabError, OSError) as error:
            self._fail(run, one_line(error))
            return True
        return False

    def _fail(self, run: str, reason: str) -> None:
        self._failures[run] = reason
        self.display.end(run, reason)


def _told(reason: Path) -> str:
    return reason.read_text() if reason.exists() else ""


def _last(lines: list[str]) -> str:
    """The last line that says anything, where no program of ours has left its reason."""
    return next((text for line in reversed(lines) if (text := line.strip())), "")
