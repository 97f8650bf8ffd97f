"""Connection to a Ray cluster: what each node gets once (code, parameters, variables, data), and probes of the nodes.

Ray is imported inside functions only: it is an optional dependency.
"""

import asyncio
import contextlib
import functools
import getpass
import hashlib
import json
import logging
import os
import signal
import socket
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optlab.orchestration import preflight_cache, ray_worker
from optlab.orchestration.executor import ClusterOptions, JobSpec
from optlab.schema.parameters import PARAMS_FILE, Config, format_count
from optlab.system import git, repository, source_code
from optlab.system.errors import ClusterError, print_stderr, summarize_error

_CONNECT_TIMEOUT_S = 10.0
_CLEANUP_TIMEOUT_S = 30.0
_IGNORED_PACKAGES = ("mlflow", "dvc")  # not used on a node
# Read by the numerical libraries; without those that describe the hardware of this machine.
_VARIABLE_PREFIXES = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "CUBLAS_", "TORCH", "PYTORCH", "OMP_")


def pack_working_dir(config: Config, folder: Path, target: Path) -> dict[str, str]:
    """Write the code of this working tree, and the parameters of the pipeline in `folder`, to a zip file.

    The package is at its root, from which a worker imports it; all else has its path in the repository. Equal content
    gives equal bytes.

    Returns:
        name → SHA-256 of the packed files.
    """
    digests = {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(set(_list_code(config, folder))):
            content = source_code.locate(name).read_bytes()
            is_package = name.is_relative_to(source_code.PACKAGE)
            member = name.relative_to(source_code.PACKAGE.parent) if is_package else name
            archive.writestr(zipfile.ZipInfo(member.as_posix()), content, zipfile.ZIP_DEFLATED)
            digests[name.as_posix()] = hashlib.sha256(content).hexdigest()
    return digests


def _list_code(config: Config, folder: Path) -> Iterator[Path]:
    for path in (source_code.PACKAGE, repository.STAGES, folder / PARAMS_FILE, folder / "dvc.yaml"):
        yield from source_code.list_files(path)
    yield from source_code.list_user_files(config.list_class_paths())


def collect_env_vars(config: Config) -> dict[str, str]:
    """Return the variables that decide bits, for the processes of the nodes.

    They include the number of threads: Ray would set it to the CPUs that a task requests.
    """
    inherited = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLE_PREFIXES)}
    return inherited | {"OMP_NUM_THREADS": str(config.training.threads)}


def collect_provenance(config: Config) -> dict[str, str]:
    """Return variables that name user and revision on a node, which has no git repository."""
    state = git.get_provenance()
    user_modules = source_code.find_user_modules(config.list_class_paths())
    used = [*source_code.list_files(repository.STAGES), *user_modules]
    if state and git.find_untracked(name.as_posix() for name in used):
        state["git.dirty"] = "yes"
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        return git.make_provenance_variables(state) | {"LOGNAME": getpass.getuser()}
    return git.make_provenance_variables(state)


def load_data() -> "dict[str, np.ndarray]":
    """Return "SHA-256 name" → bytes of each data file, as uint8 arrays, which Ray maps instead of copying them."""
    contents = {path.name: path.read_bytes() for path in sorted(repository.DATA.glob("*.bin"))}
    return {
        f"{hashlib.sha256(content).hexdigest()} {name}": np.frombuffer(content, np.uint8)
        for name, content in contents.items()
    }


class RaySession:
    """Connection to a cluster for one working tree's pipeline, until `close`.

    Args:
        folder: of the pipeline.

    Attributes:
        list_changed_files: returns the packed files that have been edited or removed since.
        machine_digest: digest of the nodes: their own if they are equal, else one of them all.
        node_of_workspace: key of a workspace → id of the node that has it.
        loop: event loop in a thread of its own, for the jobs' messages.

    Raises:
        ClusterError: there is no cluster, or a node differs from this machine.
    """

    def __init__(self, config: Config, folder: Path, cluster_options: ClusterOptions) -> None:
        self._config, self._cluster_options = config, cluster_options
        tree = hashlib.sha256(f"{socket.gethostname()} {Path.cwd()}".encode()).hexdigest()[:12]
        self._workspace_root = ray_worker.WorkspaceRoot(tree, cluster_options.shared_folder)
        cached_check = preflight_cache.load_cached(config)
        packages = [*cached_check.environment.packages, "optlab"] if cached_check else ["torch", "optlab"]
        self._expected_versions = ray_worker.collect_versions(
            [name for name in packages if name not in _IGNORED_PACKAGES]
        )
        self._excluded_nodes: set[str] = set()  # node ids
        self._ray = self._connect(folder)
        self._probe_nodes()
        self._provenance = collect_provenance(config)
        self._data = self._ray.put(load_data())
        self._print_capacity()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="cluster", daemon=True).start()

    def _connect(self, folder: Path) -> Any:
        try:
            import ray
        except ImportError:
            raise ClusterError("Ray is not installed: `pip install -c constraints.txt -e '.[ray]'`") from None
        address = self._cluster_options.address
        _check_reachable(address)
        previous_handler = signal.getsignal(signal.SIGTERM)
        with tempfile.TemporaryDirectory(prefix="optlab-") as temporary:
            package = Path(temporary) / "code.zip"
            packed = pack_working_dir(self._config, folder, package)
            environment = {"working_dir": str(package), "env_vars": collect_env_vars(self._config)}
            try:
                ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # Ray raises many classes
                raise ClusterError(f"{address}: no Ray cluster answers there ({format_ray_error(error)})") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous_handler)  # Ray's would end this process at once
        _suppress_worker_output()
        self.list_changed_files = functools.partial(source_code.find_changed, packed)
        return ray

    def _probe_nodes(self) -> None:
        names = {each["NodeID"]: _format_node_name(each) for each in self._list_alive_nodes()}
        answers = self._run_on_each_node(ray_worker.probe_node, self._expected_versions, self._workspace_root)
        node_infos: dict[str, ray_worker.NodeInfo] = {}
        for node_id, answer in answers.items():
            try:
                node_infos[node_id] = self._ray.get(answer)
            except Exception as error:
                if len(answers) > 1 and node_id not in {each["NodeID"] for each in self._list_alive_nodes()}:
                    continue  # it has died since it was listed
                self._ray.shutdown()
                raise ClusterError(f"a node cannot run optlab: {format_ray_error(error)}") from None
        if not node_infos:
            self._ray.shutdown()
            raise ClusterError("every node has died: repeat the command when there are others")
        refused = [f"node {names[node_id]}: {info.version_differences}"
                   for node_id, info in node_infos.items() if info.version_differences]  # fmt: skip
        if refused:
            self._ray.shutdown()
            raise ClusterError(f"{'; '.join(refused)}: install the same there, or take it out of the cluster")
        self.node_of_workspace = {
            key: node_id
            for done in (False, True)  # of equal workspaces, one with a completed job wins
            for node_id, info in node_infos.items()
            for key, is_done in info.workspaces.items()
            if is_done == done
        }
        digests = sorted({info.machine_digest for info in node_infos.values()})
        is_uniform = len(digests) == 1
        self.machine_digest = digests[0] if is_uniform else hashlib.sha256("".join(digests).encode()).hexdigest()[:32]

    def _print_capacity(self) -> None:
        """Print what the cluster has, and warn if no node has room for a job: Ray would wait in silence."""
        alive = self._list_alive_nodes()
        required = {"CPU": float(self._config.training.threads), "GPU": self._cluster_options.num_gpus}
        nodes = format_count(len(alive), "node")
        print(f"{self._cluster_options.address}: {nodes}, room for {self.count_slots():.0f} at a time", flush=True)
        if not any(all(each["Resources"].get(name, 0.0) >= n for name, n in required.items()) for each in alive):
            missing = " and ".join(f"{n:g} {name}" for name, n in required.items() if n)
            print_stderr(f"warning: no node of the cluster has {missing}: all wait until one joins that has")

    def close(self, clean_nodes: bool, clean_shared: bool) -> None:
        """End the session; `clean_nodes` removes what is on the nodes, `clean_shared` what is in the shared folder."""
        if clean_nodes:
            answers = self._run_on_each_node(ray_worker.clean_node, self._workspace_root, clean_shared)
            for answer in answers.values():
                with contextlib.suppress(Exception):  # the node has gone
                    self._ray.get(answer, timeout=_CLEANUP_TIMEOUT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._ray.shutdown()

    def count_slots(self) -> float:
        """Return how many jobs the present nodes have room for."""
        resources, gpus = self._ray.cluster_resources(), self._cluster_options.num_gpus
        room = float(resources.get("CPU", 0.0)) / self._config.training.threads
        return min(room, resources.get("GPU", 0.0) / gpus) if gpus else room

    def submit(self, job_spec: JobSpec, argv: list[str], files: dict[Path, bytes]) -> Any:
        """Submit a job as a Ray task; returns Ray's generator of lists of messages."""
        environment = self._provenance | dict(job_spec.environment)
        payload = ray_worker.JobPayload(
            argv,
            job_spec.folder,
            job_spec.workspace_key,
            environment,
            files,
            job_spec.outputs,
            self._compute_fingerprint(argv),
        )
        options: dict[str, Any] = {}
        node_id = None if self._workspace_root.shared_folder else self.node_of_workspace.get(job_spec.workspace_key)
        if node_id and node_id in {each["NodeID"] for each in self._list_alive_nodes()}:
            options["scheduling_strategy"] = _make_node_affinity(node_id, soft=True)
        elif self._excluded_nodes:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._excluded_nodes))})"}
        remote = self._ray.remote(ray_worker.run_job).options(
            name=job_spec.name,
            num_cpus=self._config.training.threads,
            num_gpus=self._cluster_options.num_gpus,
            max_retries=0,
            num_returns="streaming",
            **options,
        )
        return remote.remote(payload, self._expected_versions, self._workspace_root, self._data)

    def _compute_fingerprint(self, argv: list[str]) -> str:
        """Return a digest of what a job's `workspace_key` leaves out; 8 hexadecimal digits."""
        user_modules = source_code.find_user_modules(self._config.list_class_paths())
        at_root = source_code.hash_files(name for name in user_modules if not name.is_relative_to(repository.CUSTOM))
        content = json.dumps([argv, self._expected_versions, at_root], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:8]

    def cancel(self, task: Any, force: bool) -> None:
        """Interrupt a task, or with `force` kill its worker."""
        with contextlib.suppress(Exception):  # the task has ended
            self._ray.cancel(task, force=force)

    def is_death(self, error: Exception) -> bool:
        """Return whether the error means that a node or Ray's worker on it died, so that the job did not fail."""
        from ray import exceptions as ray_errors

        return isinstance(error, ray_errors.WorkerCrashedError | ray_errors.NodeDiedError | ray_errors.ObjectLostError
                          | ray_errors.OutOfMemoryError)  # fmt: skip

    def exclude_node(self, node_id: str, refusal: str) -> None:
        """Submit no more jobs to a node that joined after the probes and differs from this machine."""
        if node_id not in self._excluded_nodes:
            print_stderr(f"warning: {self.describe_node(node_id)}: {refusal}: nothing is done there")
        self._excluded_nodes.add(node_id)

    def describe_node(self, node_id: str) -> str:
        """Return a node's name, or `its node` if Ray does not know it."""
        return next(
            (f"node {_format_node_name(each)}" for each in self._ray.nodes() if each["NodeID"] == node_id), "its node"
        )

    def _list_alive_nodes(self) -> list[dict[str, Any]]:
        return [each for each in self._ray.nodes() if each["Alive"]]

    def _run_on_each_node(self, function: Any, *arguments: Any) -> dict[str, Any]:
        """Return node id → Ray's reference to the function's result there."""
        remote = self._ray.remote(function)
        return {
            each["NodeID"]: remote.options(
                num_cpus=0, scheduling_strategy=_make_node_affinity(each["NodeID"], soft=False)
            ).remote(*arguments)
            for each in self._list_alive_nodes()
        }


def format_ray_error(error: Exception) -> str:
    """Return an error in one line: of a task's exception, its own text without Ray's frame."""
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {summarize_error(cause)}"[:300] if cause else summarize_error(error)[:300]


def _check_reachable(address: str) -> None:
    """Connect to the address: Ray itself would try for minutes.

    Raises:
        ClusterError: nothing answers.
    """
    if address.startswith("ray://"):
        raise ClusterError(f"{address}: Ray's client cannot do this: run the command on a machine of the cluster")
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            raise ClusterError(f"{address}: no Ray cluster answers there ({summarize_error(error)})") from None


def _make_node_affinity(node_id: str, soft: bool) -> Any:
    """Return Ray's strategy for that node; with `soft`, for another if it is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=soft)


def _format_node_name(node_info: dict[str, Any]) -> str:
    address, node_name = node_info["NodeManagerAddress"], node_info.get("NodeName")
    return f"{node_name if node_name and node_name != address else node_info['NodeManagerHostname']} ({address})"


def _suppress_worker_output() -> None:
    """Keep Ray from printing the log lines of dying raylets on the driver's standard output."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *words, **options: None
