"""Executor of jobs on the nodes of a Ray cluster, on the side of the driver (`ray_worker` is the other side).

It uses Ray's core tasks, not its tuner: the order in which jobs end decides nothing. A job is submitted again, at most
twice, if its node or Ray's worker on it died; one that fails is not.
"""

import asyncio
import contextlib
import hashlib
import math
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from optlab.orchestration.executor import ClusterOptions, JobSpec
from optlab.orchestration.fork_server import Job, parse_stage_command
from optlab.orchestration.ray_session import RaySession, format_ray_error
from optlab.orchestration.ray_worker import WorkerMessage
from optlab.schema.parameters import Config
from optlab.system import files, locks, processes
from optlab.system.errors import BusyError, RunsFailedError, StorageError, print_stderr
from optlab.tracking import event_log
from optlab.tracking.event_log import LOG_FOLDER, EventLog
from optlab.tracking.uploader_client import UploaderClient

_MAX_RETRIES = 2  # of one job, after deaths
_MAX_EXTRA_PENDING = 10  # pending jobs besides one for each running: an autoscaler adds nodes for them


class ResultReceiver:
    """Receiver of one job's messages: puts lines, events and files where a local job would have put them.

    It holds the lock of the job's run until it is closed.

    Args:
        folder: of the pipeline.

    Attributes:
        node_id: node that the job was started on last; empty before.
        refusal: why that node is not to be used; empty if it is.
        exit_status: None before the job's end.

    Raises:
        BusyError: another process trains or evaluates that run.
    """

    def __init__(self, job_spec: JobSpec, job: Job, folder: Path) -> None:
        self.job_spec, self.job = job_spec, job
        self.node_id = self.refusal = ""
        self.exit_status: int | None = None
        self._line_counts: dict[str, int] = {}  # name of an event log → lines that are here
        self._run_lock = contextlib.ExitStack()
        if job_spec.run_id:
            lock_name = event_log.get_lock_name(folder, job_spec.run_id)
            self._run_lock.enter_context(locks.hold_lock(lock_name, locks.LOCK_TIMEOUT_S))

    def close(self) -> None:
        """Release the run's lock."""
        self._run_lock.close()

    def read_inputs(self) -> dict[Path, bytes]:
        """Return path → bytes of the job's inputs, and of the event logs that it may continue."""
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
        """Return the log of the weights that are evaluated, or the logs that a training may resume."""
        run = self.job_spec.run_id
        if not run:
            return []
        for path, content in inputs.items():
            if path.suffix == ".safetensors":
                log = event_log.find_by_weights(run, hashlib.sha256(content).hexdigest())
                return [log] if log else []
        return [each for each in event_log.list_logs() if each.run == run and not each.is_evaluated]

    def handle(self, message: WorkerMessage) -> None:
        """Handle one message.

        Raises:
            StorageError: something cannot be written, or arrived damaged.
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
            self.exit_status, self.job.error_message = message["end"], message["error"]

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


class RayExecutor:
    """Runs jobs on the nodes of a cluster; at its end it removes what it left there, unless runs have failed.

    After `wait_ready`, several threads may submit jobs, each of which may have `max_workers`.

    Args:
        folder: of the pipeline.
    """

    def __init__(self, config: Config, folder: Path, cluster_options: ClusterOptions) -> None:
        self._config, self._folder, self._cluster_options = config, folder, cluster_options
        self._session: RaySession | None = None
        self._streams: dict[Job, Any] = {}  # unfinished job → Ray's generator of messages, once submitted
        self._stopping = threading.Event()
        self._uploader: UploaderClient | None = None

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None:
        if self._session:
            failed = kind is not None and issubclass(kind, RunsFailedError)  # the next call resumes what is there
            self._session.close(clean_nodes=not failed, clean_shared=kind is None)
        if self._uploader:
            self._uploader.close()

    @property
    def max_workers(self) -> int:
        """Number of jobs at a time, of which some are pending; 1 before the connection."""
        if self._session is None:
            return 1
        return self._cluster_options.max_jobs or math.ceil(2 * self._session.count_slots()) + _MAX_EXTRA_PENDING

    def wait_ready(self) -> None:
        """Connect and probe every node, the first time; check that the nodes have the present code.

        Raises:
            ClusterError: there is no cluster, or a node differs from this machine.
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
        """Return the digest of the nodes: their own if they are equal, else one of them all."""
        return self._get_session().machine_digest

    def submit(self, job_spec: JobSpec) -> Job:
        """Start a job, or let Ray queue it."""
        session, command, job = self._get_session(), job_spec.command, Job(job_spec.name, job_spec.on_line)
        argv = command if isinstance(command, list) else parse_stage_command(command, job_spec.folder)
        if self._uploader is None and job_spec.run_id:
            self._uploader = UploaderClient()
        if argv is None:
            job.end(1, f"`{command}` is not a stage of this repository's alone: a cluster cannot run it")
            return job
        try:
            receiver = ResultReceiver(job_spec, job, self._folder)
        except BusyError as error:
            job.end(1, str(error))
            return job
        self._streams[job] = None
        asyncio.run_coroutine_threadsafe(self._run_job(receiver, argv), session.loop)
        return job

    def stop(self) -> None:
        """Interrupt all jobs, and wait for their end."""
        self._stopping.set()
        for force in (False, True):
            streams = dict(self._streams)
            for stream in streams.values():
                self._get_session().cancel(stream, force)
            wait(streams, processes.STOP_TIMEOUT_S)

    async def _run_job(self, receiver: ResultReceiver, argv: list[str]) -> None:
        """Run a job to its end, on whichever nodes, and complete it."""
        status, reason = await self._receive_all(receiver, argv)
        self._get_session().node_of_workspace[receiver.job_spec.workspace_key] = receiver.node_id
        receiver.close()
        del self._streams[receiver.job]
        receiver.job.end(status, reason)

    async def _receive_all(self, receiver: ResultReceiver, argv: list[str]) -> tuple[int, str]:
        """Submit a job, again if its node dies or is refused, and handle its messages; returns status and reason."""
        session, job_spec, deaths = self._get_session(), receiver.job_spec, 0
        while not self._stopping.is_set():
            stream = None
            try:
                stream = self._streams[receiver.job] = session.submit(job_spec, argv, receiver.read_inputs())
                async for answer in stream:
                    for message in await answer:
                        receiver.handle(message)
            except Exception as error:
                failure = format_ray_error(error)
                if receiver.exit_status is None and not self._stopping.is_set():
                    if not session.is_death(error):
                        session.cancel(stream, force=False)
                        return 1, failure
                    deaths += 1
                    if deaths > _MAX_RETRIES:
                        return 1, f"the node or Ray's worker that ran it died {deaths} times, the last time: {failure}"
                    dead = f"{session.describe_node(receiver.node_id)} or Ray's worker there"
                    print_stderr(f"{job_spec.name}: {dead} died: done again ({deaths} of {_MAX_RETRIES})")
                    continue
            if receiver.exit_status is not None:
                return receiver.exit_status, ""
            if receiver.refusal:
                session.exclude_node(receiver.node_id, receiver.refusal)
            elif not self._stopping.is_set():
                return 1, "it ended without a message"
        return 130, "interrupted"
