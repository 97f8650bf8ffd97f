"""Stages of a DVC pipeline, by DVC's own code in this process: which are stale, and the record of their outputs.

It does what `dvc repro` does before and after a stage's command, so that several commands can run meanwhile. Every use
of DVC's internals is in this module; tests/test_dvc_pipeline.py fails when DVC changes them.
"""

import contextlib
import copy
import functools
import hashlib
import json
import logging
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dvc import rwlock
from dvc import stage as dvc_stage
from dvc.dependency import param
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.serialize import to_single_stage_lockfile
from dvc_data.hashfile import transfer

from optlab import records
from optlab.orchestration.dvc_lock import DvcLock
from optlab.records import RunFiles
from optlab.system import files, repository
from optlab.system.errors import BusyError, RunsFailedError, print_stderr, summarize_error
from optlab.system.text import join_commands


class _WarningHandler(logging.Handler):
    """Prints DVC's warnings on what is stderr at that time: an open display has replaced it, and prints above itself.

    DVC's own handlers keep the streams that they find when DVC is imported, and would tear a display.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as one line, with its error in place of a traceback."""
        error = record.exc_info[1] if record.exc_info else None
        cause = f": {summarize_error(error)}" if error else ""
        print_stderr(f"{record.levelname.lower()}: DVC: {record.getMessage()}{cause}")


for _name in ("dvc", "dvc_data", "dvc_objects"):
    logging.getLogger(_name).handlers = [_WarningHandler(logging.WARNING)]
# A killed process leaves an entry for each output in DVC's rwlock: DVC would log each of them.
logging.getLogger("dvc.rwlock").setLevel(logging.ERROR)
# DVC draws progress bars if these loggers let errors through; they would scroll through an open display.
for _name in ("dvc.progress", "dvc_data.callbacks"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_dvc_load_path, _dvc_read_param_file, _dvc_create_stage = param.load_path, param.read_param_file, dvc_stage.create_stage
_LOCK_TIMEOUT_S = 60.0  # for another process of DVC


class DvcPipeline:
    """Stages of one pipeline, and its dvc.lock; for one thread.

    Args:
        path: of its dvc.yaml; the working directory is the top of the repository.
        targets: names of its runs' stages, in the order of dvc.lock.
        forced: names of stages that are stale once, and not restored from DVC's run cache.
        allow_missing: as `dvc repro --allow-missing`, a stage is not stale for missing outputs that DVC caches, unless
            a stale stage reads them.
        consumer: the pipeline whose stages may read them; default: this one.

    Attributes:
        names: names of its stages.
        has_run: whether a stage was prepared, to be run or restored.

    Raises:
        RunsFailedError: DVC cannot read it, or could not record its outputs.
        RecordError: dvc.lock is damaged.
    """

    def __init__(self, path: Path, targets: list[str], forced: Collection[str] = (),
                 allow_missing: bool = False, consumer: "DvcPipeline | None" = None) -> None:  # fmt: skip
        self._lock = DvcLock(path.with_name("dvc.lock"), ["download", *targets])
        with _translate_errors():
            self._repo = Repo(str(path.parent.absolute()))
            stages = [each for each in self._repo.index.stages if Path(each.path) == path.absolute()]
            _check_links(stages)
        self._stages: dict[str, Any] = {each.name: each for each in stages}
        self.path = path
        self.names = list(self._stages)
        self.has_run = False
        self._dependencies_before: dict[str, dict[str, Any]] = {}
        self._locked_stages: set[str] = set()
        self._forced = set(forced)
        self._allow_missing = allow_missing
        self._consumers = list((consumer or self)._stages.values())
        self._params_cache: dict[Any, Any] = {}  # stamp of a file → its content; and keys → their values

    @contextlib.contextmanager
    def lock_stages(self, names: list[str]) -> Iterator[None]:
        """Hold DVC's read and write locks on the stages' dependencies and outputs.

        Raises:
            BusyError: another process of DVC holds them.
        """
        stages = [self._stages[name] for name in names]
        outs = {out.fs_path for stage in stages for out in stage.outs}
        deps = {dep.fs_path for stage in stages for dep in stage.deps if dep.fs_path} - outs
        with contextlib.ExitStack() as stack:
            with _translate_errors():
                stack.enter_context(
                    rwlock.rwlock(
                        self._repo.tmp_dir, self._repo.fs, " ".join(sys.argv), sorted(deps), sorted(outs),
                        self._repo.config["core"].get("hardlink_lock", False),
                    )
                )  # fmt: skip
            self._locked_stages |= set(names)
            try:
                yield
            finally:
                self._locked_stages -= set(names)

    def get_command(self, name: str) -> tuple[str, Path]:
        """Return a stage's command, as the shell reads it, and its working directory, relative to the top."""
        stage = self._stages[name]
        return join_commands(stage.cmd), Path(stage.wdir).relative_to(Path.cwd())

    def list_files(self, name: str) -> tuple[list[Path], list[Path]]:
        """Return a stage's inputs from other stages, without the data, and its outputs; relative to the top."""
        stage, top = self._stages[name], Path.cwd()
        inputs = [Path(dep.fs_path).relative_to(top) for dep in stage.deps if dep.fs_path in self._output_paths]
        return inputs, [Path(out.fs_path).relative_to(top) for out in stage.outs]

    def list_watched_paths(self) -> list[Path]:
        """Return the files and folders by which DVC decides which stages are stale, its cached copies included."""
        own = [self.path.with_name(name) for name in ("dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore")]
        settings = [self.path.parent / ".dvc" / name for name in ("config", "config.local")]
        outs = [out for stage in self._stages.values() for out in stage.outs]
        used = [each.fs_path for each in [*outs, *(dep for stage in self._stages.values() for dep in stage.deps)]]
        cached = [
            self._repo.cache.local.oid_to_path(oid) for out in outs if out.use_cache for oid in _list_digests(out)
        ]
        return [*own, *settings, *map(Path, dict.fromkeys([*used, *cached]))]

    @functools.cached_property
    def _output_paths(self) -> set[str]:
        """Output paths of the repository's stages, without the data."""
        data = repository.DATA.resolve()
        paths = (out.fs_path for each in self._repo.index.stages for out in each.outs)
        return {path for path in paths if Path(path).resolve() != data}

    def compute_digest(self, name: str) -> str:
        """Return a digest of command and dependencies of a prepared stage; 16 hexadecimal digits."""
        parts = [str(self._stages[name].cmd), self._dependencies_before[name]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def is_stale(self, name: str) -> bool:
        """Return whether `dvc repro` would run a stage or restore its outputs."""
        with self._hold_dvc_lock(name):
            return name in self._forced or self._has_changed(self._stages[name])

    def list_declared_paths(self, name: str) -> tuple[list[str], list[str]]:
        """Return the paths of a stage's dependencies, without parameters, and of its outputs, as dvc.yaml has them."""
        stage = self._stages[name]
        deps = [dep.def_path for dep in stage.deps if not isinstance(dep, param.ParamsDependency)]
        return deps, [out.def_path for out in stage.outs]

    def find_changes(self) -> dict[str, str]:
        """Return what differs from dvc.lock: stage or file → `new`, `modified` or `deleted`.

        Outputs that DVC caches may be missing, in the working tree or in the cache; their digests must be the same
        wherever dvc.lock has them.
        """
        changes: dict[str, str] = {}
        digests: dict[str, str | None] = {}
        cached = {out.fs_path for stage in self._stages.values() for out in stage.outs if out.use_cache}
        for name, stage in self._stages.items():
            with self._hold_dvc_lock(name):
                if stage.changed_stage():
                    changes[name] = "modified"
                for each in [*stage.deps, *stage.outs]:
                    is_missing = each.fs_path in cached and not each.exists
                    found = {} if is_missing and each.hash_info else each.workspace_status()
                    changes |= {str(path): _flatten_state(state) for path, state in found.items()}
                    digest = each.hash_info.value
                    if each.fs_path in cached and digests.setdefault(each.fs_path, digest) != digest:
                        changes[str(each)] = "modified"
        return changes

    def _has_changed(self, stage: Any) -> bool:
        if not self._allow_missing or _has_missing_uncached_output(stage):
            return bool(stage.changed())
        missing = {out.fs_path for out in stage.outs if not out.exists}
        is_needed = any(
            _has_missing_uncached_output(each) or each.changed(allow_missing=True)
            for each in self._consumers
            if missing & {dep.fs_path for dep in each.deps}
        )
        return bool(stage.changed(allow_missing=not is_needed))

    def prepare(self, name: str) -> bool:
        """Remove a stage's outputs, and restore those of an equal run; returns whether there is none: it has to run."""
        stage = self._stages[name]
        self.has_run = True
        with self._hold_dvc_lock(name):
            stage.remove_outs(ignore_remove=False, force=False)
            if name not in self._forced:
                with contextlib.suppress(RunCacheNotFoundError):
                    self._repo.stage_cache.restore(stage)
                    if name.startswith("train@"):
                        records.restore_environment(
                            RunFiles.from_id(self.get_command(name)[1], name.removeprefix("train@"))
                        )
                    self._commit_outputs(name)
                    return False
            stage.save_deps()
            self._dependencies_before[name] = _get_dependency_values(stage)
            return True

    def commit(self, name: str) -> None:
        """Record the outputs of a stage whose command has succeeded.

        Raises:
            RunsFailedError: a dependency was changed meanwhile, or DVC's cache does not take an output, as on a full
                disk, so that nothing is recorded.
        """
        stage = self._stages[name]
        with self._hold_dvc_lock(name):
            stage.save_deps()
            after, before = _get_dependency_values(stage), self._dependencies_before[name]
            changed = [path for path in before if before[path] != after.get(path)]
            if changed:
                raise RunsFailedError(
                    f"{', '.join(changed)} changed while it ran, so nothing was recorded: repeat the command"
                )
            self._commit_outputs(name)
            self._forced.discard(name)

    def _commit_outputs(self, name: str) -> None:
        stage = self._stages[name]
        stage.save()
        stage.commit()
        self._lock.put(name, to_single_stage_lockfile(stage))
        self._repo.scm_context.track_file(str(Path(stage.dvcfile.path).with_name("dvc.lock")))

    @contextlib.contextmanager
    def _hold_dvc_lock(self, name: str) -> Iterator[None]:
        """Hold DVC's lock, as DVC does while it reads and writes, not while a command runs.

        For a stage of `lock_stages`, DVC skips its rwlock file, which lists all of those: with a hundred runs, reading
        it took more time than all else.
        """
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        with _translate_errors(), contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._repo.lock)
                    break
                except LockError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            if name in self._locked_stages:
                stack.enter_context(_patch_attribute(rwlock, "rwlock", lambda *words: contextlib.nullcontext()))
            stack.enter_context(_patch_attribute(param, "load_path", self._load_params))
            stack.enter_context(_patch_attribute(dvc_stage, "create_stage", _create_stage))
            stack.enter_context(_patch_attribute(param, "read_param_file", self._read_params))
            stack.enter_context(_patch_attribute(transfer, "_log_exception", _raise_transfer_error))
            yield

    def _load_params(self, path: str, fs: Any, **options: Any) -> Any:
        """Return the content of a parameter file, parsed once per version.

        DVC parses it some ten times a stage, which took four fifths of the time with a thousand seeds.
        """
        stamp = path, files.get_stamp(Path(path))
        if stamp not in self._params_cache:
            self._params_cache = {stamp: _dvc_load_path(path, fs, **options)}
        return copy.deepcopy(self._params_cache[stamp])

    def _read_params(self, fs: Any, path: str, key_paths: list[str] | None = None, flatten: bool = False,
                     **options: Any) -> Any:  # fmt: skip
        """Return the values of keys in a parameter file, looked up once per version: DVC walks through all seeds."""
        keys = (path, files.get_stamp(Path(path)), tuple(key_paths or ()), flatten)
        if keys not in self._params_cache:
            values = _dvc_read_param_file(fs, path, key_paths, flatten, **options)
            self._params_cache[keys] = values  # looked up first: another version empties the cache
        return copy.deepcopy(self._params_cache[keys])


def _create_stage(kind: Any, repo: Repo, path: str, **options: Any) -> Any:
    """Create a stage of DVC's run cache, for which DVC takes the working directory to be in the project."""
    return _dvc_create_stage(kind, repo, str(Path(repo.root_dir) / path), **options)


def _raise_transfer_error(digest: str, error: BaseException) -> None:
    """Raise the error for which a file was not copied to DVC's cache, in place of DVC's function that logs it.

    DVC goes on, finds that the cache lacks the file, and asks whether it may remove the file itself.
    """
    raise RunsFailedError(
        f"DVC's cache does not take an output ({summarize_error(error)}): mend it, then repeat the command"
    ) from None


@contextlib.contextmanager
def _patch_attribute(module: Any, name: str, function: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise DVC's errors as this project's."""
    try:
        yield
    except LockError as error:
        raise BusyError(f"repro: {_describe_lock_holder(error)}") from None
    except (rwlock.RWLockFileCorruptedError, rwlock.RWLockFileFormatError):
        raise RunsFailedError(
            "DVC: .dvc/tmp/rwlock is damaged, as after a power failure: if no other DVC is at work here, delete it"
        ) from None
    except DvcException as error:
        cause = f": {summarize_error(error.__cause__)}" if error.__cause__ else ""
        raise RunsFailedError(f"DVC: {summarize_error(error)}{cause}") from None


def _check_links(stages: list[Any]) -> None:
    """Refuse before anything runs what DVC would refuse after it.

    Raises:
        RunsFailedError: a cached output's folder is a link out of the repository.
    """
    top = Path.cwd()
    for path in (Path(out.fs_path) for stage in stages for out in stage.outs if out.use_cache):
        folders = [each for each in path.parents if each.is_relative_to(top)]
        link = next((each for each in folders if not each.resolve().is_relative_to(top)), None)
        if link:
            raise RunsFailedError(
                f"{link.relative_to(top)}: a link out of the repository, where DVC keeps nothing: make it a folder; "
                f"to keep large files on another disk, put DVC's cache there: `dvc cache dir --local FOLDER`"
            )


def _list_digests(out: Any) -> list[str]:
    """Return the digests of the objects that DVC's cache has of an output: of a folder, its list and its files."""
    content = out.get_obj() if out.hash_info.isdir else None
    return [each.value for each in [out.hash_info, *(entry[2] for entry in content or ())] if each]


def _has_missing_uncached_output(stage: Any) -> bool:
    """Return whether an output is missing that DVC does not cache; git may have it."""
    return any(not (out.exists or out.use_cache) for out in stage.outs)


def _get_dependency_values(stage: Any) -> dict[str, Any]:
    """Return dependency → digest of the file or folder, or values of the parameters."""
    return {str(dep): dep.hash_info.value for dep in stage.deps}


def _flatten_state(state: Any) -> str:
    """Return a file's state; of parameters, those that differ."""
    return ", ".join(f"{key} {each}" for key, each in state.items()) if isinstance(state, dict) else str(state)


def _describe_lock_holder(error: LockError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "(PID " in line]
    if not lines:
        return "another DVC is at work in this folder: wait for it to end; if none is, delete .dvc/tmp/lock"
    holder = lines[0].removeprefix("(PID ").replace("): ", " (`", 1) + "`)"
    return f"process {holder} is at work in this folder: wait for it to end, or stop it"
