"""Node's side of a cluster: runs one job in a workspace of its own and reports what comes of it meanwhile.

It runs in a worker process of Ray's, whose working directory is the code that came with the session, and imports no
torch: the job is a child of a fork server, as on any machine, which serves the worker's next job, too. A workspace
stands for the top of the repository, with the code and the data by links, and keeps what a job leaves.

Messages are dictionaries with one of these keys, sent in lists:

    node   id of the node that the job has reached; refused: why the node is not to be used, or empty
    line   of the job's output
    log    name of an event log; after: number of its lines that were sent before; lines: those since then
    file   path; sha256; content: its bytes, or same: a path that was sent with the same bytes
    end    exit status; error: why the job failed, if it could report that
"""

import collections
import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from optlab.orchestration import executor, preflight_cache
from optlab.orchestration.fork_server import ForkServer, LocalJob
from optlab.system import files, processes, repository
from optlab.system.errors import DataError
from optlab.tracking import event_log, uploader_client
from optlab.tracking.event_log import LOG_FOLDER

WorkerMessage = dict[str, Any]

_REPORT_INTERVAL_S = 0.5  # between two lists of messages
_DONE_PREFIX = "ended"  # of a file in a workspace whose job was completed
_fork_server: ForkServer | None = None


@dataclass(frozen=True)
class WorkspaceRoot:
    """Location of the workspaces of a working tree's jobs on a node.

    Attributes:
        project: a name for the working tree.
        shared_folder: a folder that all nodes see, for the workspaces; None for each node's temporary folder.
    """

    project: str
    shared_folder: Path | None = None

    @property
    def local_folder(self) -> Path:
        """Folder on this node."""
        return Path(tempfile.gettempdir()) / f"optlab-{os.getuid()}" / self.project

    @property
    def workspaces(self) -> Path:
        """Folder of the workspaces."""
        return (
            self.shared_folder / f"optlab-{self.project}" if self.shared_folder else self.local_folder
        ) / "workspaces"


@dataclass(frozen=True)
class JobPayload:
    """One job as it is sent to a node.

    Attributes:
        argv: argument vector.
        folder: working directory, relative to the top.
        workspace_key: as in `JobSpec`.
        environment: variables in addition to the worker's.
        files: path → bytes of its inputs besides the code and the data, and of event logs that it may continue.
        outputs: paths.
        fingerprint: digest of what `workspace_key` leaves out: command, package versions, user modules at the root.
    """

    argv: list[str]
    folder: Path
    workspace_key: str
    environment: Mapping[str, str]
    files: Mapping[Path, bytes]
    outputs: tuple[Path, ...]
    fingerprint: str


def prepare_workspace(payload: JobPayload, root: WorkspaceRoot, data: Mapping[str, Any]) -> Path:
    """Create a job's workspace, or update the one that an equal job has left."""
    workspace = root.workspaces / payload.workspace_key
    _kill_stale_processes(workspace)
    for name in ("locks", "checked"):  # of this node, also if the workspaces are shared
        (root.local_folder / name).mkdir(parents=True, exist_ok=True)
        _replace_symlink(workspace / ".optlab" / name, root.local_folder / name)
    files.write_atomic(workspace / ".dvc" / "config", b"")
    code = Path.cwd()
    for path in code.rglob("*"):
        if path.is_file() and path.relative_to(code).parts[0] != "optlab" and "__pycache__" not in path.parts:
            _replace_symlink(workspace / path.relative_to(code), path)
    _replace_symlink(workspace / repository.DATA, _write_data(root, data))
    for path in workspace.rglob("*"):
        if path.is_symlink() and not path.exists():  # to removed code
            path.unlink()
    for path, content in payload.files.items():
        is_log = path.is_relative_to(LOG_FOLDER) and (workspace / path).is_file()
        present = (workspace / path).read_bytes() if is_log else b""
        files.write_atomic(workspace / path, merge_logs(content, present))
    return workspace


def _kill_stale_processes(workspace: Path) -> None:
    """Kill the processes of a worker that died, which do not know it yet."""
    for process in psutil.process_iter() if workspace.exists() else ():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(workspace):
                process.kill()
                process.wait(10)


def merge_logs(received: bytes, present: bytes) -> bytes:
    """Return an event log as the driver sent it, with the lines that are only here: they did not reach the driver.

    The driver may have lines of its own: that the run died, or another node's of the same steps.
    """
    received_lines, present_lines = received.split(b"\n")[:-1], present.split(b"\n")[:-1]
    pairs = zip(received_lines, present_lines, strict=False)
    equal = next(
        (count for count, (one, other) in enumerate(pairs) if one != other),
        min(len(received_lines), len(present_lines)),
    )
    if equal == len(present_lines):
        return received
    known = {
        (point[0], point[3]) for event in event_log.parse_events(received_lines) for point in event.get("points", ())
    }
    return received + b"".join(
        line + b"\n" for line in map(functools.partial(_drop_known_points, known), present_lines[equal:]) if line
    )


def _drop_known_points(known: set[tuple[str, int]], line: bytes) -> bytes:
    """Return a line without the known points; empty, if it had no others."""
    event = event_log.parse_event(line)
    if event["event"] != "metrics":
        return line
    points = [point for point in event["points"] if (point[0], point[3]) not in known]
    return json.dumps(event | {"points": points}).encode() if points else b""


def _write_data(root: WorkspaceRoot, data: Mapping[str, Any]) -> Path:
    """Write the data's files, unless they are there, and return their folder; checks their digests.

    Raises:
        DataError: a file was damaged on the way.
    """
    digest_of_all = hashlib.sha256("".join(sorted(data)).encode()).hexdigest()[:16]
    folder = root.local_folder / "data" / digest_of_all
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        for named, content in data.items():
            digest, _, name = named.partition(" ")
            if not (folder / name).exists():
                if hashlib.sha256(content).hexdigest() != digest:
                    raise DataError(f"{name} arrived damaged: repeat the command")
                files.write_atomic(folder / name, content.tobytes())
    return folder


def _replace_symlink(path: Path, target: Path) -> None:
    """Create a link, or replace an older one."""
    if path.is_symlink() and path.readlink() == target:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{files.TEMPORARY_SUFFIX}")
    temporary.symlink_to(target)
    temporary.replace(path)


def collect_versions(packages: list[str]) -> dict[str, str | None]:
    """Return the versions of Python and of packages, which must be equal on all nodes; None for a missing one."""
    versions: dict[str, str | None] = {"Python": platform.python_version()}
    for name in packages:
        versions[name] = None
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe_version_differences(expected: Mapping[str, str | None]) -> str:
    """Return how the versions here differ from the expected ones; empty if they do not."""
    installed = collect_versions([name for name in expected if name != "Python"])
    return ", ".join(
        f"{name} {installed[name] or 'is missing'} ({expected_version or 'none'} here)"
        for name, expected_version in expected.items()
        if installed[name] != expected_version
    )


@dataclass(frozen=True)
class NodeInfo:
    """State of one node before it gets a job.

    Attributes:
        version_differences: as `describe_version_differences` returns them.
        machine_digest: as `preflight_cache.compute_machine_digest` returns it.
        workspaces: key of a workspace that is there → whether its job was completed.
    """

    version_differences: str
    machine_digest: str
    workspaces: dict[str, bool]


def probe_node(expected_versions: Mapping[str, str | None], root: WorkspaceRoot) -> NodeInfo:
    """Return the state of this node."""
    _scrub_environment()
    folders = root.workspaces.iterdir() if root.workspaces.is_dir() else ()
    workspaces = {each.name: any(each.glob(f"{_DONE_PREFIX}-*")) for each in folders}
    return NodeInfo(
        describe_version_differences(expected_versions), preflight_cache.compute_machine_digest(), workspaces
    )


def _scrub_environment() -> None:
    """Remove variables of the process that started Ray, which would decide something here."""
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_", "OPTLAB_")):
            del os.environ[name]
    inherited = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    if others := [path for path in inherited if path and Path(path) != Path.cwd()]:
        os.environ["PYTHONPATH"] = os.pathsep.join(others)


def clean_node(root: WorkspaceRoot, clean_shared: bool) -> None:
    """Remove the workspaces of this node, and with `clean_shared` those in the shared folder."""
    shutil.rmtree(root.local_folder, ignore_errors=True)
    if clean_shared and root.shared_folder:
        shutil.rmtree(root.workspaces.parent, ignore_errors=True)
    with contextlib.suppress(OSError):  # another working tree has a folder there
        root.local_folder.parent.rmdir()


def run_job(payload: JobPayload, expected_versions: Mapping[str, str | None], root: WorkspaceRoot,
            data: Mapping[str, Any]) -> Iterator[list[WorkerMessage]]:  # fmt: skip
    """Run a job, or resume what an earlier call left in its workspace; yields messages.

    Args:
        expected_versions: as in `probe_node`: a node may have joined since.
        data: "SHA-256 name" → content of the data's files, as arrays of uint8, mapped from the object store.
    """
    import ray

    context = ray.get_runtime_context()
    refusal = describe_version_differences(expected_versions)
    yield [{"node": context.get_node_id(), "refused": refusal}]
    if refusal:
        return
    _scrub_environment()
    workspace = prepare_workspace(payload, root, data)
    collector = OutputCollector(workspace, dict(payload.files))
    done_marker = workspace / f"{_DONE_PREFIX}-{payload.fingerprint}"
    if not done_marker.exists():
        job = _start_job(payload, workspace, collector, has_gpu=bool(context.get_accelerator_ids().get("GPU")))
        try:
            while not wait([job], _REPORT_INTERVAL_S).done:
                if messages := collector.drain():
                    yield messages
        except BaseException:
            processes.stop([job])
            raise
        if job.status:
            yield [*collector.drain(), {"end": job.status, "error": job.error_message or job.reason}]
            return
        done_marker.touch()
    yield [*collector.drain(), *collector.read_files(payload.outputs), {"end": 0, "error": ""}]


def _start_job(payload: JobPayload, workspace: Path, collector: "OutputCollector", has_gpu: bool) -> LocalJob:
    global _fork_server
    if _fork_server is None:
        _fork_server = ForkServer(int(os.environ["OMP_NUM_THREADS"]) <= len(executor.list_cores()), "--training")
    environment = {
        uploader_client.UPLOADER_PARENT_VARIABLE: uploader_client.NO_UPLOAD,
        processes.PARENT_PID_VARIABLE: str(os.getpid()),
    }
    if has_gpu:
        environment |= {name: value for name, value in os.environ.items() if name.endswith("_VISIBLE_DEVICES")}
    else:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    return _fork_server.start(
        payload.workspace_key,
        payload.argv,
        workspace / payload.folder,
        [],
        environment | dict(payload.environment),
        collector.add_line,
        workspace / "reason",
    )


@dataclass
class OutputCollector:
    """Collector of what a job has printed and written and was not sent yet.

    Attributes:
        received_files: path → bytes of what was sent with the job.
    """

    workspace: Path
    received_files: dict[Path, bytes]
    _lines: "collections.deque[str]" = field(default_factory=collections.deque)
    _sent_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # name of an event log → bytes, lines
    _sent_files: dict[str, str] = field(default_factory=dict)  # SHA-256 → path

    def __post_init__(self) -> None:
        for path, content in self.received_files.items():
            if path.is_relative_to(LOG_FOLDER):
                self._sent_sizes[path.parent.name] = (len(content), content.count(b"\n"))
            else:
                self._sent_files[hashlib.sha256(content).hexdigest()] = str(path)

    def add_line(self, line: str) -> bool:
        """Take a line of the job's output, as its `on_line`."""
        self._lines.append(line)
        return True

    def drain(self) -> list[WorkerMessage]:
        """Return messages about everything since the last call."""
        messages: list[WorkerMessage] = [{"line": self._lines.popleft()} for _ in range(len(self._lines))]
        for path in sorted((self.workspace / LOG_FOLDER).glob("*/events.jsonl")):
            name = path.parent.name
            size, after = self._sent_sizes.get(name, (0, 0))
            with path.open("rb") as file:
                file.seek(size)
                lines = file.read().split(b"\n")[:-1]
            if lines:
                events = event_log.parse_events(lines, skip="metrics")
                artifacts = self.read_files([Path(event["path"]) for event in events if "path" in event])
                messages += [*artifacts, {"log": name, "after": after, "lines": lines}]
                self._sent_sizes[name] = (size + sum(len(line) + 1 for line in lines), after + len(lines))
        return messages

    def read_files(self, paths: "tuple[Path, ...] | list[Path]") -> Iterator[WorkerMessage]:
        """Yield messages with the present files; the bytes of equal ones are sent once."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                content = (self.workspace / path).read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                same = self._sent_files.setdefault(digest, str(path))
                body = {"same": same} if same != str(path) else {"content": content}
                yield {"file": str(path), "sha256": digest, **body}
