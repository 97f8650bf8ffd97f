"""DVC's account of a pipeline, kept by DVC's own code in this process: what is stale, and what came out.

It does what `dvc repro` does for a stage before and after its command, and nothing during it, so that several commands
can be at work. Only one thread may use it.
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
from dvc.dependency import param
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.serialize import to_single_stage_lockfile

from optlab.execution.lockfile import LockFile
from optlab.record import kept
from optlab.record.runs import RunFiles
from optlab.system import repository
from optlab.system.errors import BusyError, RunsFailedError, one_line

# A killed process has left an entry for each output in DVC's list of who is at work: DVC says so of each.
logging.getLogger("dvc.rwlock").setLevel(logging.ERROR)
# DVC draws its progress bars where these loggers let errors through; they would scroll through a display that is open.
for _name in ("dvc.progress", "dvc_data.callbacks"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_load_path = param.load_path
_PATIENCE_S = 60.0  # for another DVC that looks at something


class Ledger:
    """The stages of one pipeline, and its dvc.lock.

    Args:
        pipeline: the path of its dvc.yaml; the working directory is the top of the repository.
        targets: the names of its runs' stages, in their order.
        anew: names of stages that are run once, even where nothing has changed or DVC has kept an equal run, which may
            be of another machine.
        allow_missing: a stage of which nothing has changed is not stale where files are missing that DVC's cache keeps,
            as in a fresh clone, unless one that is stale reads them: `dvc repro --allow-missing`.
        read_by: the pipeline whose stages may read them; default: this one.

    Attributes:
        pipeline: as given.
        names: of its stages.

    Raises:
        RunsFailedError: DVC cannot read it, or could not record what its stages write.
        RecordError: dvc.lock is damaged.
    """

    def __init__(self, pipeline: Path, targets: list[str], anew: Collection[str] = (),
                 allow_missing: bool = False, read_by: "Ledger | None" = None) -> None:  # fmt: skip
        self._lock = LockFile(pipeline.with_name("dvc.lock"), ["download", *targets])
        with _told():
            self._repo = Repo()
            stages = [each for each in self._repo.index.stages if Path(each.path_in_repo) == pipeline]
            _check_links(stages)
        self._stages: dict[str, Any] = {each.name: each for each in stages}
        self.pipeline = pipeline
        self.names = list(self._stages)
        self._before: dict[str, dict[str, Any]] = {}
        self._held: set[str] = set()
        self._anew = set(anew)
        self._allow_missing = allow_missing
        self._readers = list((read_by or self)._stages.values())
        self._params: dict[tuple[str, int, int, int], Any] = {}

    @contextlib.contextmanager
    def holding(self, names: list[str]) -> Iterator[None]:
        """Keep every other DVC from running these stages, or what would write their inputs.

        Raises:
            BusyError: another one is at work on them.
        """
        stages = [self._stages[name] for name in names]
        outs = {out.fs_path for stage in stages for out in stage.outs}
        deps = {dep.fs_path for stage in stages for dep in stage.deps if dep.fs_path} - outs
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(
                    rwlock.rwlock(
                        self._repo.tmp_dir, self._repo.fs, " ".join(sys.argv), sorted(deps), sorted(outs),
                        self._repo.config["core"].get("hardlink_lock", False),
                    )
                )  # fmt: skip
            except LockError as error:
                raise BusyError(f"repro: {_who(error)}") from None
            self._held |= set(names)
            try:
                yield
            finally:
                self._held -= set(names)

    def command(self, name: str) -> tuple[str, Path]:
        """The command line of a stage, and the folder that it is run in, relative to the top."""
        stage = self._stages[name]
        command = stage.cmd if isinstance(stage.cmd, str) else " && ".join(stage.cmd)
        return command, Path(stage.wdir).relative_to(Path.cwd())

    def files(self, name: str) -> tuple[list[Path], list[Path]]:
        """What a stage reads of what others write, but for the data, and what it writes; relative to the top."""
        stage, top = self._stages[name], Path.cwd()
        reads = [Path(dep.fs_path).relative_to(top) for dep in stage.deps if dep.fs_path in self._written]
        return reads, [Path(out.fs_path).relative_to(top) for out in stage.outs]

    @functools.cached_property
    def _written(self) -> set[str]:
        """The paths that the repository's stages write, but for the data's."""
        return {out.fs_path for each in self._repo.index.stages for out in each.outs} - {str(repository.DATA.resolve())}

    def digest(self, name: str) -> str:
        """Of all that decides a stage that was begun; 16 hexadecimal digits."""
        decides = json.dumps([str(self._stages[name].cmd), self._before[name]], sort_keys=True, default=str)
        return hashlib.sha256(decides.encode()).hexdigest()[:16]

    def is_stale(self, name: str) -> bool:
        """Whether `dvc repro` would run that stage, or bring back its outputs."""
        with self._locked(name):
            return name in self._anew or self._has_changed(self._stages[name])

    def _has_changed(self, stage: Any) -> bool:
        if not self._allow_missing or _lacks_record(stage):
            return bool(stage.changed())
        missing = {out.fs_path for out in stage.outs if not out.exists}
        readers = [each for each in self._readers if missing & {dep.fs_path for dep in each.deps}] if missing else []
        wanted = any(_lacks_record(each) or each.changed(allow_missing=True) for each in readers)
        return bool(stage.changed(allow_missing=not wanted))

    def begin(self, name: str) -> bool:
        """Remove the outputs of a stage, and bring back those of an equal run; whether there was none."""
        stage = self._stages[name]
        with self._locked(name):
            stage.remove_outs(ignore_remove=False, force=False)
            if name not in self._anew:
                with contextlib.suppress(RunCacheNotFoundError):
                    self._repo.stage_cache.restore(stage)
                    if name.startswith("train@"):  # before a stage that depends on what is there
                        kept.restore(RunFiles.of(self.command(name)[1], name.removeprefix("train@")))
                    self._record(name)
                    return False
            stage.save_deps()
            self._before[name] = _state(stage)
            return True

    def end(self, name: str) -> None:
        """The stage's command has ended well: record what came out.

        Raises:
            RunsFailedError: what it depends on was changed meanwhile, so that nothing is recorded.
        """
        stage = self._stages[name]
        with self._locked(name):
            stage.save_deps()
            after, before = _state(stage), self._before.pop(name)
            changed = [path for path in before if before[path] != after.get(path)]
            if changed:
                raise RunsFailedError(
                    f"{', '.join(changed)} changed while it ran, so nothing was recorded: repeat the command"
                )
            self._record(name)
            self._anew.discard(name)

    def _record(self, name: str) -> None:
        stage = self._stages[name]
        stage.save()
        stage.commit()
        self._lock.put(name, to_single_stage_lockfile(stage))
        self._repo.scm_context.track_file(str(Path(stage.dvcfile.path).with_name("dvc.lock")))

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """With DVC's lock, which it holds while it looks and while it writes, not while a command runs.

        For a stage that is held, DVC need not look through its list of who is at work, which has all that are held:
        with a hundred runs, that took more time than all else.
        """
        deadline = time.monotonic() + _PATIENCE_S
        with _told(), contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._repo.lock)
                    break
                except LockError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            if name in self._held:
                stack.enter_context(_with(rwlock, "rwlock", lambda *words: contextlib.nullcontext()))
            stack.enter_context(_with(param, "load_path", self._parsed))
            yield

    def _parsed(self, path: str, fs: Any, **options: Any) -> Any:
        """What is in a file of parameters, which DVC reads some ten times a stage: parsed again if it has changed.

        With a thousand seeds in it, that took four fifths of the time.
        """
        known = Path(path).stat()
        stamp = (path, known.st_mtime_ns, known.st_size, known.st_ino)
        if stamp not in self._params:
            self._params = {stamp: _load_path(path, fs, **options)}
        return copy.deepcopy(self._params[stamp])


@contextlib.contextmanager
def _with(module: Any, name: str, function: Any) -> Iterator[None]:
    """With another function in the place of a module's own."""
    usual = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, usual)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """DVC's errors as this project's."""
    try:
        yield
    except (rwlock.RWLockFileCorruptedError, rwlock.RWLockFileFormatError):
        raise RunsFailedError(
            "DVC: .dvc/tmp/rwlock is damaged, as after a power failure: if no other DVC is at work here, delete it"
        ) from None
    except DvcException as error:
        cause = f": {one_line(error.__cause__)}" if error.__cause__ else ""
        raise RunsFailedError(f"DVC: {one_line(error)}{cause}") from None


def _check_links(stages: list[Any]) -> None:
    """Find out before anything runs what DVC would say after it.

    Raises:
        RunsFailedError: what DVC is to keep of a stage would be written through a link out of the repository.
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


def _lacks_record(stage: Any) -> bool:
    """Whether a file is missing that no cache has; git may have it."""
    return any(not (out.exists or out.use_cache) for out in stage.outs)


def _state(stage: Any) -> dict[str, Any]:
    """What decides the stage, by its name: digests of files and folders, values of parameters."""
    return {str(dep): dep.hash_info.value for dep in stage.deps}


def _who(error: LockError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "(PID " in line]
    what = lines[0].removeprefix("(PID ").replace("): ", " (`", 1) + "`)" if lines else "of another DVC"
    return f"process {what} is at work in this folder: wait for it to end, or stop it"
