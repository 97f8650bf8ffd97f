"""An order's place on a node: a repository's top, with the code and the data by links, and what it has left there.

A node's side of a cluster: does one order in a folder of its own, and says what comes of it while it comes.

It runs in a worker process of Ray's, whose working directory is the code that came with the call (`luggage`), and
imports no torch: the order is a child of a process that has imported what it needs (`warm`), as on any
machine, and that process serves the next order, too.

What it says is lists of messages, each a dictionary with one of these keys:

    node      its id: the order has come there; refused, why that node is not to be used, or nothing
    line      of the order's output
    log       an event log's name; after, how many of its lines were known; lines, those that came since
    file      a path; content, its bytes, or same, a path that has them already; its sha256
    end       the exit status; told, why it failed, where it could say
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
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from optlab.orchestration import executor, preflight_cache
from optlab.orchestration.jobs import ForkServer
from optlab.system import files, processes, repository
from optlab.system.errors import ERROR_FILE_VARIABLE, DataError
from optlab.tracking import event_log, uploader_client
from optlab.tracking.event_log import LOG_FOLDER


@dataclass(frozen=True)
class WorkspaceRoot:
    """Where a working tree's orders are done on the nodes.

    Attributes:
        project: a name for the working tree.
        shared_folder: a folder that all nodes see, for the places; None for each node's own.
    """

    project: str
    shared_folder: Path | None = None

    @property
    def local_folder(self) -> Path:
        """The folder on this node."""
        return Path(tempfile.gettempdir()) / f"optlab-{os.getuid()}" / self.project

    @property
    def workspaces(self) -> Path:
        """Where each order has a folder."""
        return (self.shared_folder / f"optlab-{self.project}" if self.shared_folder else self.local_folder) / "places"


@dataclass(frozen=True)
class JobPayload:
    """An order as it travels.

    Attributes:
        argv: the command's.
        folder: relative to the top.
        workspace_key: as in `Order`.
        environment: what it has besides the worker's.
        files: path → bytes of what it reads besides the code and the data; event logs that it may go on with included.
        outputs: paths.
        fingerprint: a digest of what `workspace_key` leaves out: command, package versions, user modules at the root.
    """

    argv: list[str]
    folder: Path
    workspace_key: str
    environment: Mapping[str, str]
    files: Mapping[Path, bytes]
    outputs: tuple[Path, ...]
    fingerprint: str


def prepare_workspace(payload: JobPayload, root: WorkspaceRoot, data: Mapping[str, Any]) -> Path:
    """Make an order's place, or find it: a repository's top, with the code and the data by links."""
    workspace = root.workspaces / payload.workspace_key
    _kill_stale_processes(workspace)
    for name in ("locks", "checked"):  # of this node, also where the places are not
        (root.local_folder / name).mkdir(parents=True, exist_ok=True)
        _replace_symlink(workspace / ".optlab" / name, root.local_folder / name)
    files.write_atomic(workspace / ".dvc" / "config", b"")
    code = Path.cwd()
    for path in code.rglob("*"):
        if path.is_file() and path.relative_to(code).parts[0] != "optlab" and "__pycache__" not in path.parts:
            _replace_symlink(workspace / path.relative_to(code), path)
    _replace_symlink(workspace / repository.DATA, _write_data(root, data))
    for path in workspace.rglob("*"):
        if path.is_symlink() and not path.exists():  # of code that is no more
            path.unlink()
    for path, content in payload.files.items():
        present = (
            (workspace / path).read_bytes() if (workspace / path).is_file() and path.is_relative_to(LOG_FOLDER) else b""
        )
        files.write_atomic(workspace / path, merge_logs(content, present))
    return workspace


def _kill_stale_processes(workspace: Path) -> None:
    """Kill who is still at work there: Ray's worker has died, and what it had started does not know it yet."""
    for process in psutil.process_iter() if workspace.exists() else ():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(workspace):
                process.kill()
                process.wait(10)


def merge_logs(received: bytes, present: bytes) -> bytes:
    """An event log as it was sent, and the lines after those in which it was equal here: they did not arrive.

    Who has asked may have written lines, too: that the run is dead, or what another node has said of the same steps.
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
    """A line without the points that are known; nothing, if it had no others."""
    event = event_log.parse_event(line)
    if event["event"] != "metrics":
        return line
    points = [point for point in event["points"] if (point[0], point[3]) not in known]
    return json.dumps(event | {"points": points}).encode() if points else b""


def _write_data(root: WorkspaceRoot, data: Mapping[str, Any]) -> Path:
    """The folder of the data's files, which are written once, and checked as they arrive: their names are digests."""
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
    """A link to the target, in the place of an older one."""
    if path.is_symlink() and path.readlink() == target:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{files.TEMPORARY_SUFFIX}")
    temporary.symlink_to(target)
    temporary.replace(path)


WorkerMessage = dict[str, Any]

_REPORT_INTERVAL_S = 0.5  # between two lists of messages
_DONE_PREFIX = "ended"  # in a place: the order was done to its end
_fork_server: ForkServer | None = None


def collect_versions(packages: list[str]) -> dict[str, str | None]:
    """What must be the same everywhere: Python's version, and those of the packages; None for one that is missing."""
    versions: dict[str, str | None] = {"Python": platform.python_version()}
    for name in packages:
        versions[name] = None
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe_version_differences(expected: Mapping[str, str | None]) -> str:
    """What is otherwise here, in words."""
    installed = collect_versions([name for name in expected if name != "Python"])
    return ", ".join(
        f"{name} {installed[name] or 'is missing'} ({expected_version or 'none'} here)"
        for name, expected_version in expected.items()
        if installed[name] != expected_version
    )


@dataclass(frozen=True)
class NodeInfo:
    """What a call is told of a node before anything is done there.

    Attributes:
        version_differences: from the machine that asks, in words; empty where there are none.
        machine_digest: as `preflight_cache.compute_machine_digest` has it.
        workspaces: those that an earlier call has left → whether their order was done to its end.
    """

    version_differences: str
    machine_digest: str
    workspaces: dict[str, bool]


def probe_node(expected_versions: Mapping[str, str | None], root: WorkspaceRoot) -> NodeInfo:
    """Look at this node."""
    _scrub_environment()
    folders = root.workspaces.iterdir() if root.workspaces.is_dir() else ()
    workspaces = {each.name: any(each.glob(f"{_DONE_PREFIX}-*")) for each in folders}
    return NodeInfo(
        describe_version_differences(expected_versions), preflight_cache.compute_machine_digest(), workspaces
    )


def _scrub_environment() -> None:
    """Leave what this process's environment says of a call, or of where Ray was started, out of what follows."""
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_", "OPTLAB_")):
            del os.environ[name]
    inherited = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    if others := [path for path in inherited if path and Path(path) != Path.cwd()]:
        os.environ["PYTHONPATH"] = os.pathsep.join(others)


def clean_node(root: WorkspaceRoot, clean_shared: bool) -> None:
    """Remove what lies on this node, and with `clean_shared` in the shared folder as well."""
    shutil.rmtree(root.local_folder, ignore_errors=True)
    if clean_shared and root.shared_folder:
        shutil.rmtree(root.workspaces.parent, ignore_errors=True)
    with contextlib.suppress(OSError):  # another working tree has something there
        root.local_folder.parent.rmdir()


def run_job(payload: JobPayload, expected_versions: Mapping[str, str | None], root: WorkspaceRoot,
         data: Mapping[str, Any]) -> Iterator[list[WorkerMessage]]:  # fmt: skip
    """Do an order, or go on with it where an earlier call left it in its place; yields messages.

    Args:
        expected_versions: as in `probe_node`: a node may have joined since.
        data: digest and name → content of the data's files, as arrays of uint8, mapped from the object store.
    """
    global _fork_server
    import ray

    refusal = describe_version_differences(expected_versions)
    yield [{"node": ray.get_runtime_context().get_node_id(), "refused": refusal}]
    if refusal:
        return
    _scrub_environment()
    workspace = prepare_workspace(payload, root, data)
    collector = OutputCollector(workspace, dict(payload.files))
    done_marker = workspace / f"{_DONE_PREFIX}-{payload.fingerprint}"
    status = 0
    if not done_marker.exists():
        error_file = workspace / "reason"
        error_file.unlink(missing_ok=True)
        if _fork_server is None:
            _fork_server = ForkServer(int(os.environ["OMP_NUM_THREADS"]) <= len(executor.list_cores()), "--training")
        finished = threading.Event()
        own_pid = str(os.getpid())
        environment = {
            uploader_client.UPLOADER_PARENT_VARIABLE: uploader_client.NO_UPLOAD,
            processes.PARENT_PID_VARIABLE: own_pid,
            ERROR_FILE_VARIABLE: str(error_file),
        }
        if ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            devices = {name: value for name, value in os.environ.items() if name.endswith("_VISIBLE_DEVICES")}
        else:
            devices = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
        job = _fork_server.start(
            payload.workspace_key,
            payload.argv,
            workspace / payload.folder,
            [],
            devices | environment | dict(payload.environment),
            collector.add_line,
            lambda name: finished.set(),
        )
        try:
            while not finished.wait(_REPORT_INTERVAL_S):
                if messages := collector.drain():
                    yield messages
        except BaseException:
            processes.stop([job])
            raise
        status = job.wait()
        if status:
            error_message = error_file.read_text("utf-8") if error_file.exists() else job.reason
            yield [*collector.drain(), {"end": status, "told": error_message}]
            return
        done_marker.touch()
    yield [*collector.drain(), *collector.read_files(payload.outputs), {"end": status, "told": ""}]


@dataclass
class OutputCollector:
    """What has come of an order and was not said yet.

    Attributes:
        workspace: of its place.
        received_files: path → bytes of what was sent along.
    """

    workspace: Path
    received_files: dict[Path, bytes]
    _lines: "collections.deque[str]" = field(default_factory=collections.deque)
    _sent_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # event log → bytes, lines
    _sent_files: dict[str, str] = field(default_factory=dict)  # SHA-256 → path

    def __post_init__(self) -> None:
        for path, content in self.received_files.items():
            if path.is_relative_to(LOG_FOLDER):
                self._sent_sizes[path.parent.name] = (len(content), content.count(b"\n"))
            else:
                self._sent_files[hashlib.sha256(content).hexdigest()] = str(path)

    def add_line(self, line: str) -> bool:
        """The order has printed that."""
        self._lines.append(line)
        return True

    def drain(self) -> list[WorkerMessage]:
        """What has come since the last call."""
        messages: list[WorkerMessage] = [{"line": self._lines.popleft()} for _ in range(len(self._lines))]
        for path in sorted((self.workspace / LOG_FOLDER).glob("*/events.jsonl")):
            name = path.parent.name
            size, after = self._sent_sizes.get(name, (0, 0))
            with path.open("rb") as file:
                file.seek(size)
                lines = file.read().split(b"\n")[:-1]
            if lines:
                artifact_paths = [
                    event["path"] for event in event_log.parse_events(lines, skip="metrics") if "path" in event
                ]
                messages += [
                    *self.read_files([Path(each) for each in artifact_paths]),
                    {"log": name, "after": after, "lines": lines},
                ]
                self._sent_sizes[name] = (size + sum(len(line) + 1 for line in lines), after + len(lines))
        return messages

    def read_files(self, paths: "tuple[Path, ...] | list[Path]") -> Iterator[WorkerMessage]:
        """Those of the files that are there; of equal ones, the bytes are said once."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                content = (self.workspace / path).read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                same = self._sent_files.setdefault(digest, str(path))
                body = {"same": same} if same != str(path) else {"content": content}
                yield {"file": str(path), "sha256": digest, **body}
