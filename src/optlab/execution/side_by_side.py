"""`dvc repro` with the runs side by side, each on cores of its own: DVC has no such option (treeverse/dvc#755).

Every run is a DVC process of its own, `dvc --wait-for-lock repro --single-item`, which skips what is up to date. DVC
holds its lock while it looks and while it writes dvc.lock, and lets go while a stage's command runs.
"""

import contextlib
import io
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from ruamel.yaml import YAML, YAMLError

from optlab.config.parameters import Config, run_id
from optlab.system import dvc, files, locks, processes
from optlab.system.errors import REASON_VARIABLE, BusyError, RecordError, RunsFailedError, one_line
from optlab.tracking.observers import PROGRESS_MARK, PROGRESS_VARIABLE

_YAML = YAML()  # as DVC writes its lock: what is only moved keeps its bytes
_YAML.default_flow_style = False
_TAIL = 20  # lines of a child's output


def repro(config: Config, folder: Path, jobs: int) -> None:
    """What `dvc repro` of the pipeline in `folder` does, up to `jobs` runs at a time; the working directory is the top.

    A failed run does not stop the others. dvc.lock ends as plain `dvc repro` leaves it.

    Raises:
        RunsFailedError: runs failed, or a stage before or after them.
        BusyError: another process does it in this working tree.
    """
    pipeline = (folder / "dvc.yaml").as_posix()
    runs = [run_id(name, seed) for name, seed in config.runs()]
    lock = Lock(folder / "dvc.lock", runs)
    with locks.holding("repro"), processes.terminable():
        _plain("the data could not be had", "dvc.yaml:download")
        try:
            failures = Crew(pipeline, runs, jobs, config.training.threads).work()
        finally:
            lock.restore_order()
        if failures:
            for run, reason in failures.items():
                print(f"{run}: {reason}", file=sys.stderr)
            raise RunsFailedError(
                f"{len(failures)} of {len(runs)} runs failed: {', '.join(failures)}: mend it, then repeat the command: "
                f"it runs these again, and nothing else"
            )
        _plain("the runs are complete, but a stage after them failed", pipeline)


def _plain(problem: str, target: str) -> None:
    """Run a stage and what it needs the plain way, without DVC's account of what it skips."""
    environment = os.environ | {processes.CALLER_VARIABLE: str(os.getpid())}
    if processes.run([*dvc.COMMAND, "--wait-for-lock", "repro", "--quiet", target], env=environment):
        other = _other_dvc()
        if other:
            raise BusyError(f"repro: {other} is at work in this folder: wait for it to end, or stop it")
        raise RunsFailedError(f"{problem}: see above")


def _other_dvc() -> str | None:
    """The process, if any, that DVC has noted as at work on stages; `--quiet` keeps DVC from saying so."""
    try:
        noted = json.loads((Path(".dvc") / "tmp" / "rwlock").read_text())
        entries = [
            *noted.get("write", {}).values(),
            *(each for many in noted.get("read", {}).values() for each in many),
        ]
        alive = [entry for entry in entries if psutil.pid_exists(entry["pid"])]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return f"process {alive[0]['pid']} (`{alive[0]['cmd']}`)" if alive else None


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
        pipeline: the path of its dvc.yaml.
        threads: how many a training uses; where a job has fewer cores, its threads wait without spinning.
    """

    pipeline: str
    runs: list[str]
    jobs: int
    threads: int
    _children: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def work(self) -> dict[str, str]:
        """Do every run; returns why those failed that did. An interruption stops every child first."""
        free: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        for cores in cores_for(self.jobs):
            free.put(cores)
        failures: dict[str, str] = {}
        with Display(len(self.runs)) as display:

            def one(run: str) -> None:
                if self._stopping.is_set():
                    return
                cores = free.get()
                try:
                    reason = self._run(run, cores, display)
                finally:
                    free.put(cores)
                if self._stopping.is_set():
                    return
                if reason:
                    failures[run] = reason
                display.end(run, reason)

            with ThreadPoolExecutor(self.jobs) as pool:
                futures = [pool.submit(one, run) for run in self.runs]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    self._stopping.set()
                    processes.stop(list(self._children.values()))
                    display.say("stopped: what is complete is kept, and the next call does the rest")
                    raise
        return {run: failures[run] for run in self.runs if run in failures}

    def _run(self, run: str, cores: set[int], display: "Display") -> str | None:
        """Train and evaluate one run; returns why it failed, or None."""
        targets = [f"{self.pipeline}:{stage}@{run}" for stage in ("train", "evaluate")]
        with tempfile.TemporaryDirectory(prefix="optlab-") as folder:
            reason = Path(folder) / "reason"
            environment = os.environ | {
                PROGRESS_VARIABLE: "lines", processes.CALLER_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1",
                REASON_VARIABLE: str(reason),
            }  # fmt: skip
            if self.threads > len(cores):
                environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            lines, status = self._child(run, targets, environment, cores, display)
            if not status:
                return None
            told = reason.read_text() if reason.exists() else ""
            if not told and not self._stopping.is_set():  # nothing of ours could say why: show what there is
                display.say("".join(lines[-_TAIL:]).rstrip())
            return told or _last(lines) or f"ended with exit status {status}"

    def _child(self, run: str, targets: list[str], environment: dict[str, str], cores: set[int],
               display: "Display") -> tuple[list[str], int]:  # fmt: skip
        """Run DVC on the targets; returns the lines that were not shown, and the exit status."""
        with subprocess.Popen(
            [*dvc.COMMAND, "--wait-for-lock", "repro", "--single-item", *targets], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, errors="replace",
        ) as child:  # fmt: skip
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(child.pid, cores)  # what it starts inherits it
            self._children[run] = child
            if self._stopping.is_set():  # while this one was being started
                processes.stop([child])
            assert child.stdout is not None
            lines = [line for line in child.stdout if not display.show(run, line)]
            status = child.wait()
        del self._children[run]
        return lines, status


def _last(lines: list[str]) -> str:
    """The last line that says anything, where no program of ours has left its reason: DVC's own."""
    return next((text for line in reversed(lines) if (text := line.strip())), "").removeprefix("ERROR: ")


class Display:
    """One progress display for all runs: a line for each that is at work, and one for all."""

    def __init__(self, runs: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"), console=Console(highlight=False, soft_wrap=True),
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._all = self._progress.add_task("runs", total=runs, text="")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self._progress.stop()

    def show(self, run: str, line: str) -> bool:
        """Take a child's line, if it says how far it is or what an epoch brought."""
        if line.startswith(PROGRESS_MARK):
            with contextlib.suppress(ValueError):  # another line can run into it
                self._advance(run, json.loads(line.removeprefix(PROGRESS_MARK)))
            return True
        if line.startswith((f"{run}  ", "warning:")):
            prefix = "" if line.startswith(run) else f"{run}  "
            self.say(prefix + line.rstrip())
            return True
        return False

    def _advance(self, run: str, state: dict[str, Any]) -> None:
        if run not in self._tasks:
            self._tasks[run] = self._progress.add_task(run, total=state["total"], text="")
        self._progress.update(self._tasks[run], completed=state["images"], text=f"loss {state['loss']:.3f}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._progress.console.print(text, markup=False)

    def end(self, run: str, reason: str | None) -> None:
        """The run has ended."""
        if run in self._tasks:
            self._progress.remove_task(self._tasks.pop(run))
        if reason:
            self.say(f"{run}  failed: {reason}")
        self._progress.advance(self._all)


class Lock:
    """dvc.lock, whose entries DVC appends as stages end, in no fixed order.

    Entries that were there keep their places, as with plain `dvc repro`; the others follow in the order of params.yaml,
    which is one of those that plain `dvc repro` can leave: its own depends on Python's hash seed.
    """

    def __init__(self, path: Path, runs: list[str]) -> None:
        self._path = path
        self._order = list(self._read().get("stages", {}))
        stages = ("download", *(f"{stage}@{run}" for run in runs for stage in ("train", "evaluate")))
        self._order += [name for name in stages if name not in self._order]

    def _read(self) -> dict[str, Any]:
        try:
            lock = _YAML.load(self._path) if self._path.exists() else {}
            dict(lock["stages"] if lock else {})
        except (YAMLError, TypeError, ValueError, KeyError) as error:
            raise RecordError(f"{self._path}: damaged ({one_line(error)}): restore it with git") from None
        return lock or {}

    def restore_order(self) -> None:
        """Put the entries into their order; those of other stages follow as they are."""
        lock = self._read()
        entries = lock.get("stages", {})
        order = [name for name in self._order if name in entries]
        order += [name for name in entries if name not in self._order]
        if order != list(entries):
            lock["stages"] = {name: entries[name] for name in order}
            text = io.StringIO()
            _YAML.dump(lock, text)
            files.write(self._path, text.getvalue().encode())
