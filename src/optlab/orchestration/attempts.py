"""Attempts on a study: the optimizers that were confirmed with the same seeds and compared with it, in order.

Repeating `optlab versus` with edited optimizers until one is "better" raises the probability of a false verdict. So
each edit counts as an attempt, and attempt j is tested at α / (j (j + 1)). The list is a file in the study's folder,
which is no dependency or output of a stage: it belongs to git, and makes no record stale. An attempt's number is its
place among those that share one of its seeds, and is not written, so that lines of two branches can be merged. This
module imports neither torch nor DVC.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from optlab.schema.optimizer import StrictModel
from optlab.schema.parameters import NAME_PATTERN, Config
from optlab.system import files, locks
from optlab.system.errors import RecordError, summarize_error
from optlab.system.text import find_conflict_marker, parse_yaml
from optlab.tuning import selection

ATTEMPTS_FILE = Path("attempts.yaml")

_HEADER = """\
# The optimizers that `optlab versus` has confirmed and compared with {study}, in order. An edited optimizer is another
# one. The more lines share a seed, the stricter the verdict of the last: delete none, and commit this file.
"""


class Attempt(StrictModel):
    """One line of the file.

    Attributes:
        challenger: name of the optimizer.
        digest: result of `compute_digest`.
        seeds: of the runs that confirm it.
    """

    challenger: str = Field(pattern=NAME_PATTERN)
    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(min_length=1)

    def is_same(self, other: "Attempt") -> bool:
        """Return whether both have the same runs: the names do not matter."""
        return self.digest == other.digest and set(self.seeds) == set(other.seeds)


_ATTEMPTS = TypeAdapter(list[Attempt])


def make_attempt(config: Config, challenger: str, modules: dict[str, str]) -> Attempt:
    """Return the attempt of an optimizer.

    Args:
        config: of its pipeline.
        modules: as `selection.hash_modules` returns them for the optimizer and the model.
    """
    return Attempt(challenger=challenger, digest=compute_digest(config, challenger, modules), seeds=config.seeds)


def compute_digest(config: Config, name: str, modules: dict[str, str]) -> str:
    """Return a digest of what decides the runs of an optimizer but for their seeds: 16 hexadecimal digits of a SHA-256.

    The order of the keys counts: the search assigns its dimensions to the ranges in that order.
    """
    without: dict[str, Any] = {"optimizers": True, "seeds": True, "verdict": True, "data": {"mirror_test"}}
    parts: list[Any] = [
        selection.dump_entry(config.get_optimizer(name)),
        modules,
        config.model_dump(mode="json", exclude_defaults=True, exclude=without),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def read(study: Path) -> list[Attempt]:
    """Return the attempts on a study, in order; a merge of two branches can have left one twice.

    Raises:
        RecordError: the file is damaged.
    """
    path = study / ATTEMPTS_FILE
    try:
        text = path.read_text("utf-8")
        marker_line = find_conflict_marker(text)
        if marker_line:
            raise RecordError(
                f"{path}:{marker_line}: conflict markers of a git merge: keep the lines of both sides, and delete the "
                f"markers"
            )
        return _ATTEMPTS.validate_python(parse_yaml(text) or [])
    except FileNotFoundError:
        return []
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where, reason = f"{path}:{mark.line + 1}" if mark else f"{path}", str(error.problem)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        where = f"{path}: attempt {int(location[0]) + 1}" if location else f"{path}"
        reason = ": ".join([*map(str, location[1:2]), first["msg"]])
    except (OSError, ValueError, YAMLError) as error:
        where, reason = f"{path}", summarize_error(error)
    raise RecordError(f"{where}: damaged ({reason}): restore the line, or the file with `git checkout {path}`")


def find_number(attempts: list[Attempt], attempt: Attempt) -> int:
    """Return the number of an attempt among those that share one of its seeds, from 1; for a new one, the next."""
    earlier: list[Attempt] = []
    for each in attempts:
        if each.is_same(attempt):
            break
        if not set(each.seeds).isdisjoint(attempt.seeds) and not any(each.is_same(known) for known in earlier):
            earlier.append(each)
    return len(earlier) + 1


def record(study: Path, attempt: Attempt) -> None:
    """Add an attempt to the study's list, unless it is there.

    Raises:
        RecordError: the list is damaged.
        StorageError: it cannot be written.
    """
    path = study / ATTEMPTS_FILE
    with locks.hold_lock(f"attempts-{study.name}", locks.LOCK_TIMEOUT_S):
        if any(each.is_same(attempt) for each in read(study)):
            return
        text = path.read_text("utf-8").rstrip("\n") + "\n" if path.exists() else _HEADER.format(study=study)
        seeds = ", ".join(map(str, attempt.seeds))
        text += f'- {{challenger: {attempt.challenger}, digest: "{attempt.digest}", seeds: [{seeds}]}}\n'
        files.write_atomic(path, text.encode())
