"""Memory of a pipeline that DVC and MLflow have found complete, so that `optlab repro` need not ask them again.

It is valid while parameters, code, packages and machine are the same, and every file that DVC looks at has the same
size, time and inode: DVC, too, does not read such a file again. Importing this imports neither DVC nor torch.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from optlab.orchestration import preflight_cache
from optlab.schema.parameters import Config
from optlab.system import files, repository
from optlab.system.errors import StorageError
from optlab.tracking import comparison_view, event_log, uploader

if TYPE_CHECKING:
    from optlab.analysis.comparison import Comparison

_FOLDER = Path(".optlab") / "verified"


class _Verified(BaseModel):
    """Content of a file: paths relative to the root or absolute, and the digest of their state."""

    paths: list[str]
    digest: str


@dataclass(frozen=True)
class VerifiedState:
    """The memory of one pipeline.

    Args:
        allow_missing: as for `DvcPipeline`; what is complete with it need not be without.
    """

    config: Config
    folder: Path
    allow_missing: bool = False

    def is_current(self) -> bool:
        """Return whether the pipeline has been found complete, and nothing has changed since."""
        try:
            verified = _Verified.model_validate_json(self._get_path().read_bytes())
        except (OSError, ValidationError):
            return False
        return verified.digest == self.compute_digest(map(Path, verified.paths))

    def compute_digest(self, paths: Iterable[Path]) -> str:
        """Return a digest of all that decides whether stages with files at these paths are complete."""
        config = self.config.model_dump(mode="json")  # the key leaves out what no check reads
        parts: list[Any] = [preflight_cache.compute_cache_key(self.config), config, self.allow_missing]
        parts += [(str(file), file.is_dir() or files.get_stamp(file)) for path in paths for file in _list_files(path)]
        with contextlib.suppress(OSError):  # replaced by each `optlab show`, by an equal one
            parts.append(comparison_view.get_state_path(self._experiment).read_text("utf-8"))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def write(self, paths: Collection[Path], digest: str) -> None:
        """Save that the pipeline is complete, unless something has changed since the digest was computed.

        Args:
            digest: of these paths, from before DVC has looked at them.
        """
        if digest == self.compute_digest(paths):
            verified = _Verified(paths=[str(each) for each in paths], digest=digest)
            with contextlib.suppress(StorageError, OSError):  # without it, DVC is asked again
                files.write_atomic(self._get_path(), verified.model_dump_json().encode())

    def is_in_mlflow(self, compared: "Comparison") -> bool:
        """Return whether the local store has every event log to its end, and shows the comparison if it is to.

        Returns:
            False if a server would have to be asked, which takes as long as importing MLflow.
        """
        if repository.is_experiment_copy() or not uploader.is_all_in_local_store():
            return False
        return bool(compared.challenger) or comparison_view.is_shown(self._experiment)

    @property
    def _experiment(self) -> str:
        return event_log.get_experiment_name(self.folder)

    def _get_path(self) -> Path:
        return _FOLDER / f"{self._experiment}.json"


def _list_files(path: Path) -> Iterator[Path]:
    """Yield a path, and the files in a folder at any depth; bytecode is not part of any digest of DVC."""
    yield path
    for folder, names, file_names in os.walk(path):
        names[:] = sorted(name for name in names if name != "__pycache__")
        yield from (Path(folder, name) for name in sorted(file_names))
