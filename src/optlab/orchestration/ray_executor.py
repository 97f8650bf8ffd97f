"""What a node says of an order, put where the order's own process would have put it: lines, event logs, files.

Orders done on the nodes of a Ray cluster, seen from the machine that asks (`node` is the other side).

Ray's core tasks, not its tuner: in which order they end decides nothing. An order is done again, at most twice, where
its node died, or Ray's worker on it; what fails by itself is not tried again.
"""

import asyncio
import contextlib
import hashlib
import queue
import threading
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from optlab.orchestration.executor import ClusterOptions, JobSpec
from optlab.orchestration.jobs import Job, parse_stage_command
from optlab.orchestration.ray_session import RaySession, format_ray_error
from optlab.orchestration.ray_worker import WorkerMessage
from optlab.schema.parameters import Config
from optlab.system import files, locks, processes
from optlab.system.errors import BusyError, RunsFailedError, StorageError, print_stderr
from optlab.tracking import event_log
from optlab.tracking.event_log import LOG_FOLDER, EventLog
from optlab.tracking.uploader_client import UploaderClient


class ResultReceiver:
    """Of one order; while it is at work, this process holds the lock of its run. Made and closed by one thread.

    Args:
        folder: of the pipeline.

    Attributes:
        job_spec: as given.
        job: as given; it has ended once its node has said so.
        node_id: the id of the node that it was begun on last; empty before.
        refusal: why that node is not to be used; empty where it is.

    Raises:
        BusyError: another process is at work on that run.
    """

    def __init__(self, job_spec: JobSpec, job: Job, folder: Path) -> None:
        self.job_spec, self.job = job_spec, job
        self.node_id = self.refusal = ""
        self._line_counts: dict[str, int] = {}  # event log → how many are here
        self._run_lock = contextlib.ExitStack()
        if job_spec.run_id:
            self._run_lock.enter_context(
                locks.hold_lock(event_log.get_lock_name(folder, job_spec.run_id), locks.LOCK_TIMEOUT_S)
            )

    def close(self) -> None:
        """It has ended."""
        self._run_lock.close()

    def read_inputs(self) -> dict[Path, bytes]:
        """Path → bytes of what travels with it: what it reads, and the event log that it may go on with."""
        contents = {
            path: path.read_bytes()
            for each in self.job_spec.inputs
            for path in (each.rglob("*") if each.is_dir() else [each])
            if path.is_file()
        }
        for log in self._find_event_logs(contents):
            lines = log.read_lines()
            self._line_counts[log.folder.name] = len(lines)
            contents[LOG_FOLDER / log.folder.name / log.path.name] = b"".join(line + b"\n" for line in lines)
        return contents

    def _find_event_logs(self, inputs: dict[Path, bytes]) -> list[EventLog]:
        """The one of the weights that are evaluated, or those of the run that a training may go on with."""
        run = self.job_spec.run_id
        if not run:
            return []
        for path, content in inputs.items():
            if path.suffix == ".safetensors":
                found = event_log.find_by_weights(run, hashlib.sha256(content).hexdigest())
                return [found] if found else []
        return [each for each in event_log.list_logs() if each.run == run and not each.is_evaluated]

    def handle(self, message: WorkerMessage) -> None:
        """Do what a message says.

        Raises:
            StorageError: something cannot be written, or did not arrive whole.
        """
        if "node" in message:
            self.node_id, self.refusal = message["node"], message["refused"]
        elif "line" in message:
            self.job.receive_line(message["line"])
        elif "log" in message:
            self._append_events(message["log"], message["after"], message["lines"])
        elif "file" in message:
            self._write_file(message)
        else:
            self.job.error_message = message["told"]
            self.job.end(message["end"])

    def _append_events(self, name: str, after: int, lines: list[bytes]) -> None:
        log = EventLog(event_log.get_log_folder() / name)
        known_lines = self._line_counts.setdefault(name, len(log.read_lines()))
        if after > known_lines:
            raise StorageError(
                f"event log {name}: {after - known_lines} lines were lost on the way: repeat the command"
            )
        new_lines = lines[known_lines - after :]
        try:
            log.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.make_storage_error(log.folder, error) from None
        log.extend(new_lines)
        self._line_counts[name] = known_lines + len(new_lines)

    def _write_file(self, message: WorkerMessage) -> None:
        path = Path(message["file"])
        content = message["content"] if "content" in message else Path(message["same"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != message["sha256"]:
            raise StorageError(f"{path}: did not arrive whole: repeat the command")
        files.write_atomic(path, content)


_MAX_RETRIES = 2  # times, at most, that the same order is done again after a death
_MAX_EXTRA_PENDING = 10  # orders that may wait besides twice those at work: a cluster that can grow has to see them


class RayExecutor:
    """The nodes of a cluster; once it is left, nothing stays on them, unless runs have failed.

    Args:
        folder: of the pipeline.
    """

    def __init__(self, config: Config, folder: Path, cluster_options: ClusterOptions) -> None:
        self._config, self._folder, self._cluster_options = config, folder, cluster_options
        self._session: RaySession | None = None
        self._children: list[RayExecutor] = []
        self._jobs: dict[str, Job] = {}
        self._receivers: dict[str, ResultReceiver] = {}
        self._streams: dict[str, Any] = {}  # order → Ray's generator
        self._futures: dict[str, Future[None]] = {}
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._uploader: UploaderClient | None = None

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None:
        if self._session:
            failed = kind is not None and issubclass(kind, RunsFailedError)  # the next call goes on with what there is
            self._session.close(clean_nodes=not failed, clean_shared=kind is None)
        if self._uploader:
            self._uploader.close()

    def create_child(self) -> "RayExecutor":
        """Another pool of the same nodes, for another thread; it lasts as long as this one."""
        child = RayExecutor(self._config, self._folder, self._cluster_options)
        child._session, child._stopping = self._get_session(), self._stopping
        self._children.append(child)
        return child

    def wait_ready(self) -> None:
        """Connect, and look at every node; and whether they have the code that there is now.

        Raises:
            ClusterError: there is no cluster, or a node is not like this machine.
            RunsFailedError: the code has been changed since the nodes got it.
        """
        changed_files = self._get_session().list_changed_files()
        if changed_files:
            raise RunsFailedError(f"{', '.join(changed_files)} changed since the nodes got it: repeat the command")

    def _get_session(self) -> RaySession:
        if self._session is None:
            self._session = RaySession(self._config, self._folder, self._cluster_options)
        return self._session

    def get_machine_digest(self) -> str:
        """Of the nodes, where they are alike; of them all, where they are not."""
        return self._get_session().machine_digest

    def has_room(self) -> bool:
        """Whether another order would be begun soon, or is one that a growing cluster should see."""
        if self._session is None:
            return True
        if self._cluster_options.max_jobs:
            return len(self._jobs) < self._cluster_options.max_jobs
        return len(self._jobs) < 2 * self._get_session().count_slots() + _MAX_EXTRA_PENDING

    def submit(self, job_spec: JobSpec) -> None:
        """Begin it, or have it wait for its turn."""
        loop = self._get_session().loop
        job = self._jobs[job_spec.name] = Job(job_spec.name, job_spec.on_line, self._finished.put)
        argv = (
            job_spec.command
            if isinstance(job_spec.command, list)
            else parse_stage_command(job_spec.command, job_spec.folder)
        )
        if self._uploader is None and job_spec.run_id:
            self._uploader = UploaderClient()
        if argv is None:
            job.end(1, f"`{job_spec.command}` is not a stage of this repository's alone: a cluster cannot run it")
            return
        try:
            self._receivers[job_spec.name] = ResultReceiver(job_spec, job, self._folder)
        except BusyError as error:
            job.end(1, str(error))
            return
        self._futures[job_spec.name] = asyncio.run_coroutine_threadsafe(self._run_job(job_spec, argv), loop)

    def wait_any(self) -> Job:
        """The next job that has ended, its outputs in their places; waits for it."""
        name = self._finished.get()
        self._futures.pop(name, None)
        self._streams.pop(name, None)
        receiver = self._receivers.pop(name, None)
        if receiver:
            self._get_session().workspace_node[receiver.job_spec.workspace_key] = receiver.node_id
            receiver.close()
        return self._jobs.pop(name)

    def stop(self) -> None:
        """Interrupt everything that is at work, and wait for its end; that of the branches, too."""
        self._stopping.set()
        executors = [self, *self._children]
        for force in (False, True):
            for task in [task for executor in executors for task in list(executor._streams.values())]:
                self._get_session().cancel(task, force)
            wait([future for pool in executors for future in list(pool._futures.values())], processes.STOP_TIMEOUT_S)
        for receiver in self._receivers.values():
            receiver.close()

    async def _run_job(self, job_spec: JobSpec, argv: list[str]) -> None:
        """Take an order's messages until it has ended, wherever that is."""
        session, receiver = self._get_session(), self._receivers[job_spec.name]
        job, deaths = receiver.job, 0
        while job.status is None:
            if self._stopping.is_set():
                job.end(130, "interrupted")
                return
            try:
                self._streams[job_spec.name] = session.submit(job_spec, argv, receiver.read_inputs())
                async for answer in self._streams[job_spec.name]:
                    for message in await answer:
                        receiver.handle(message)
            except Exception as error:
                deaths += 1
                if self._stopping.is_set():
                    job.end(130, "interrupted")
                elif not session.is_death(error):
                    session.cancel(self._streams.get(job_spec.name), force=False)
                    job.end(1, format_ray_error(error))
                elif deaths > _MAX_RETRIES:
                    job.end(
                        1,
                        f"the node or Ray's worker that did it died {deaths} times, the last time: "
                        f"{format_ray_error(error)}",
                    )
                else:
                    failed_process = f"{session.describe_node(receiver.node_id)} or Ray's worker there"
                    print_stderr(f"{job_spec.name}: {failed_process} died: done again ({deaths} of {_MAX_RETRIES})")
                continue
            if receiver.refusal:
                session.exclude_node(receiver.node_id, receiver.refusal)
            elif job.status is None:
                job.end(1, "it ended without a word")
