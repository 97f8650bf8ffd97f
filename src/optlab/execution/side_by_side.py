"""`dvc repro` with the runs side by side, here or on a cluster, and without a start-up for each stage.

DVC has no such option (treeverse/dvc#755). Here its own code, in this process, says what is stale and records what came
out (`ledger`), and the stages are children of a process that has imported what they need (`warm`). This process has
threads, the display, and DVC: it never forks.
"""

import functools
import os
import sys
import tempfile
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optlab.config.parameters import PARAMS, Config
from optlab.execution import checked, cores, pools
from optlab.execution.display import Display, show_status
from optlab.execution.jobs import Job, Warm
from optlab.execution.orders import Access, Order, Pool
from optlab.record.runs import RunFiles
from optlab.system import dvc, locks, processes, progress, repository
from optlab.system.errors import REASON_VARIABLE, ClusterError, ConfigError, OptlabError, RunsFailedError, one_line
from optlab.system.wording import counted
from optlab.tracking import link
from optlab.training import numerics

if TYPE_CHECKING:
    from optlab.execution.ledger import Ledger

_STAGES = ("train", "evaluate")
_TAIL = 20  # lines of a child's output


def repro(config: Config, folder: Path, jobs: int | None, access: Access | None = None,
          anew: Collection[str] = (), allow_missing: bool = False) -> None:  # fmt: skip
    """What `dvc repro` of the pipeline in `folder` does, several runs at a time; the working directory is the top.

    A failed run does not stop the others. dvc.lock ends as plain `dvc repro` leaves it.

    Args:
        jobs: how many runs, or trials, at once on this machine; default: as many as the cores have room for.
        access: to a cluster, which does the trainings, evaluations and trials then.
        anew: optimizers of which no run that DVC has kept is brought back.
        allow_missing: as for `Ledger`.

    Raises:
        ConfigError: params.yaml cannot be used.
        ClusterError: the cluster cannot be used.
        RunsFailedError: runs failed, or a stage before or after them.
        BusyError: another process does it in this working tree.
    """
    repository.choose(folder)
    numerics.prepare(config.training)  # the stages' process reads these variables as it starts
    runs = [RunFiles(folder, name, seed) for name, seed in config.runs()]
    if jobs:
        os.environ[pools.JOBS_VARIABLE] = str(jobs)
    jobs = min(jobs or cores.at_once(config), len(runs))
    print(_describe(config, folder, None if access else jobs), flush=True)
    targets = [f"{stage}@{files.id}" for files in runs for stage in _STAGES]
    tunings = [f"tune@{name}" for name in config.optimizers]
    own = str(os.getpid())
    os.environ |= {link.FOLLOWED_VARIABLE: own, processes.CALLER_VARIABLE: own}
    with locks.holding("repro"), processes.terminable(), Warm(spinning=cores.spins(config, jobs)) as warm:
        link.start(own)
        with show_status("reading what DVC has recorded, and checking params.yaml"):
            from optlab.execution.ledger import Ledger  # DVC, while the others load what they need

            not_kept = [f"{stage}@{each.id}" for each in runs if each.optimizer in anew for stage in _STAGES]
            ledger = Ledger(folder / "dvc.yaml", [*tunings, *targets], not_kept, allow_missing)
            if checked.known(config) is None:
                _check(warm, ["optlab", "check"], folder)
        above = ledger if folder == Path() else Ledger(Path("dvc.yaml"), [], (), allow_missing, ledger)
        _stage(above, warm, "download", "the data could not be had")
        _check(warm, ["optlab.data.verification", config.data.dataset])
        with pools.pool(config, folder, jobs, warm, access) as pool:
            searched = [name for name, spec in config.optimizers.items() if access and spec.ranges]
            for name in config.optimizers:
                if name not in searched:
                    _stage(ledger, warm, f"tune@{name}", "a tuning failed")
            _search(ledger, config, folder, searched, pool)
            with ledger.holding(targets), Display(runs) as display:
                failures = Crew(ledger, folder, pool, display).work([each.id for each in runs])
            if failures:
                for run, reason in failures.items():
                    print(f"{run}: {reason}", file=sys.stderr)
                raise RunsFailedError(
                    f"{len(failures)} of {len(runs)} runs failed: {', '.join(failures)}: mend it, then repeat the "
                    f"command: it runs these again, and nothing else"
                )
        _finish(ledger, warm, folder, {*tunings, *targets}, allow_missing)


def _describe(config: Config, folder: Path, jobs: int | None) -> str:
    """Return what is about to be done, in a line."""
    parts = counted(len(config.optimizers), "optimizer"), counted(len(config.seeds), "seed")
    where = "on a cluster" if jobs is None else f"{jobs} at a time"
    return f"{folder / PARAMS}: {' × '.join(parts)} = {counted(len(config.runs()), 'run')}, {where}"


def _finish(ledger: "Ledger", warm: Warm, folder: Path, done: Collection[str], allow_missing: bool) -> None:
    """Compare the runs, run the stages that a user has added, and show the comparison if it was up to date.

    Args:
        done: the names of the stages that are complete.

    Raises:
        RunsFailedError: a stage failed.
    """
    problem = "the runs are complete, but a stage after them failed"
    compared = _stage(ledger, warm, "compare", problem)
    others = [name for name in ledger.names if name not in done]
    if any(ledger.is_stale(name) for name in others):
        options = ["--allow-missing"] if allow_missing else []
        command = [*dvc.COMMAND, "--wait-for-lock", "repro", "--quiet", *options, ledger.pipeline.as_posix()]
        if processes.run(command):
            raise RunsFailedError(f"{problem}: see above")
    if not compared:
        print("Nothing has changed since the last comparison.", flush=True)
        if warm.start("show", ["optlab", "show"], folder, cores.available_cores(), {}).wait():
            raise RunsFailedError("the record is complete, but cannot be shown: see above")


def _check(warm: Warm, words: list[str], folder: Path = Path()) -> None:
    """Run a check in a process of its own, and pass its warnings on.

    Args:
        words: its command line.
        folder: where it is run.

    Raises:
        ConfigError: it found an error.
    """
    with tempfile.TemporaryDirectory(prefix="optlab-") as temporary:
        reason = Path(temporary) / "reason"
        job = warm.start(words[0], words, folder, [], {REASON_VARIABLE: str(reason)}, lambda line: False)
        if job.wait():
            job.told = reason.read_text("utf-8") if reason.exists() else ""
            raise ConfigError(job.why())
    for line in job.lines:
        if line.startswith(("warning:", "note:")):
            print(line, end="", file=sys.stderr)


def _stage(ledger: "Ledger", warm: Warm, name: str, problem: str) -> bool:
    """Run a stage by itself, if the pipeline has it and it is stale; its output is this process's.

    Returns:
        Whether its command was run.

    Raises:
        RunsFailedError: it failed; what it printed says why.
    """
    if name not in ledger.names or not ledger.is_stale(name):
        return False
    with ledger.holding([name]):
        if not ledger.begin(name):
            return False
        words, folder = ledger.command(name)
        job = warm.start(name, words, folder, cores.available_cores(), {})
        try:
            if job.wait():
                raise RunsFailedError(f"{problem}: {job.reason or 'see above'}")
        except KeyboardInterrupt:
            processes.stop([job])
            raise
        ledger.end(name)
        return True


def _search(ledger: "Ledger", config: Config, folder: Path, names: list[str], pool: Pool) -> None:
    """Tune optimizers on a cluster, all at once: it has room, where a machine's cores are taken by one.

    Raises:
        RunsFailedError: one failed; the others were let to their end.
    """
    stages = {f"tune@{name}": name for name in names}
    stale = [stage for stage in stages if ledger.is_stale(stage)]
    if not stale:
        return
    from optlab.execution import trials

    pool.ready()
    with ledger.holding(stale), ThreadPoolExecutor(len(stale)) as threads:
        begun = [stage for stage in stale if ledger.begin(stage)]
        at_work = {stage: threads.submit(trials.tune, config, folder, stages[stage], pool.branch()) for stage in begun}
        try:
            reasons = {stage: each.exception() for stage, each in at_work.items()}
        except BaseException:
            pool.stop()
            raise
        for stage, reason in reasons.items():
            if reason is None:
                ledger.end(stage)
    failed = {stage: reason for stage, reason in reasons.items() if reason}
    if failed:
        for stage, reason in failed.items():
            print(f"{stage}: {one_line(reason)}", file=sys.stderr)
        raise RunsFailedError(f"a tuning failed: {', '.join(failed)}: see above")


@dataclass
class Crew:
    """The runs of one pipeline, each stage ordered as it is due.

    Attributes:
        folder: of the pipeline.
    """

    ledger: "Ledger"
    folder: Path
    pool: Pool
    display: Display
    _working: dict[str, str] = field(default_factory=dict)  # run → stage
    _failures: dict[str, str] = field(default_factory=dict)

    def work(self, runs: list[str]) -> dict[str, str]:
        """Do every run; returns why those failed that did. An interruption stops everything first."""
        waiting = list(runs)
        try:
            while waiting or self._working:
                while waiting and self.pool.has_room():
                    self._go_on(waiting.pop(0), _STAGES)
                if self._working:
                    job = self.pool.ended()
                    stage = self._working.pop(job.name)
                    if not self._has_failed(job, stage):
                        self._go_on(job.name, _STAGES[_STAGES.index(stage) + 1 :])
        except BaseException:
            self.pool.stop()
            self.display.say("stopped: what is complete is kept, and the next call does the rest")
            raise
        return {run: self._failures[run] for run in runs if run in self._failures}

    def _go_on(self, run: str, stages: Iterable[str]) -> None:
        """Order the first of these stages that is stale; if there is none, the run has ended."""
        for stage in stages:
            name = f"{stage}@{run}"
            try:
                if not self.ledger.is_stale(name):
                    continue
                self.pool.ready()
                if not self.ledger.begin(name):
                    self.display.say(f"{run}  {stage}: as an equal one that DVC has kept")
                    continue
            except ClusterError:
                raise
            except (OptlabError, OSError) as error:
                self._fail(run, one_line(error))
                return
            self.pool.start(self._order(run, stage))
            self._working[run] = stage
            return
        self.display.end(run, None)

    def _order(self, run: str, stage: str) -> Order:
        name = f"{stage}@{run}"
        words, where = self.ledger.command(name)
        inputs, outputs = self.ledger.files(name)
        if stage == "train":
            outputs = [*outputs, RunFiles.of(self.folder, run).conditions]  # beside the record, no part of it
        return Order(
            run, words, where, f"{stage}-{run}-{self.ledger.digest(name)}", tuple(inputs), tuple(outputs), run,
            {progress.VARIABLE: "lines"}, functools.partial(self.display.show, run),
        )  # fmt: skip

    def _has_failed(self, job: Job, stage: str) -> bool:
        """Record what a stage that has ended brought, if it ended well."""
        if job.status:
            if not job.told:  # nothing of ours could say why: show what there is
                self.display.say("".join(job.lines[-_TAIL:]).rstrip())
            self._fail(job.name, job.why())
            return True
        try:
            self.ledger.end(f"{stage}@{job.name}")
        except (OptlabError, OSError) as error:
            self._fail(job.name, one_line(error))
            return True
        return False

    def _fail(self, run: str, reason: str) -> None:
        self._failures[run] = reason
        self.display.end(run, reason)
