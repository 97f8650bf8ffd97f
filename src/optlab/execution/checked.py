"""What was found of a params.yaml, kept for the next time: with the same parameters, code and packages it is the same.

A hit costs no torch. Each optimizer is kept for itself as well, so that an edit of one lets the others be. The name of
a file is a digest of all that it depends on, and the file is never changed.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from optlab.config.parameters import Config
from optlab.record.contents import Conditions
from optlab.system import files, forked, memory, repository
from optlab.system.errors import StorageError

_FOLDER = Path(".optlab") / "checked"
_KEPT = 200
_READ = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "OMP_", "CUBLAS_", "CUDA_", "TORCH", "PYTORCH", "PYTHONPATH")
# By `conditions.apply`, and by how many are at work: this one decides how long they take, and nothing else.
_SET = ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_DETERMINISTIC", "OMP_WAIT_POLICY")


class Checked(BaseModel):
    """Of a params.yaml that can be used.

    Attributes:
        warnings: of what nobody has measured.
        conditions: of the runs that would be made here now.
    """

    model_config = ConfigDict(frozen=True)

    warnings: list[str]
    conditions: Conditions


def known(config: Config) -> Checked | None:
    """What was found, if it was looked for."""
    try:
        return Checked.model_validate_json((_FOLDER / f"{_digest(config)}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def ensure(config: Config) -> Checked:
    """What is known, or is found now, in a process of its own: what a check builds and steps is not for a training.

    `numerics.prepare` was called before.

    Raises:
        ConfigError: params.yaml cannot be used.
    """
    return known(config) or Checked.model_validate(forked.call(lambda: look(config).model_dump(mode="json")))


def look(config: Config) -> Checked:
    """Look, whole, in this process, and keep what was found.

    Raises:
        ConfigError: params.yaml cannot be used.
    """
    from optlab.training import conditions, numerics, optimizers

    place = _FOLDER / f"{_digest(config)}.json"  # now: what follows sets variables
    device = conditions.apply(config.training)
    own = parts(config)
    if own == [config]:
        warnings = [*optimizers.check(config), *numerics.limits(config)]
    else:
        warnings = [sentence for each in own for sentence in (known(each) or look(each)).warnings]
    here = conditions.current(device, config.paths())
    found = Checked(warnings=list(dict.fromkeys(warnings)), conditions=here)
    with contextlib.suppress(StorageError, OSError):  # it is looked for again
        files.write(place, found.model_dump_json().encode())
        for old in sorted(_FOLDER.glob("*.json"), key=os.path.getmtime, reverse=True)[_KEPT:]:
            old.unlink(missing_ok=True)
    return found


def parts(config: Config) -> list[Config]:
    """It with each optimizer alone; with each of the corners of its ranges, where it has any."""
    return [
        config.model_copy(update={"optimizers": {name: each}})
        for name, spec in config.optimizers.items()
        for each in (spec.corners() if spec.ranges else [spec])
    ]


def _digest(config: Config) -> str:
    """Of the parameters, the code that they name and are judged by, the packages, and what the machine decides."""
    decides = {
        "config": config.model_dump(mode="json"),
        "code": {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(set(_code(config)))
            if path.is_file()  # an editor's lock is a link to nowhere
        },
        "machine": machine(),
        "memory": memory.total(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def machine() -> str:
    """A digest of the packages, of what the machine decides, and of the variables that the libraries read."""
    decides = {
        "packages": repository.packages(),
        "machine": [platform.python_version(), platform.platform(), _cpu(), *_devices()],
        "variables": sorted(item for item in os.environ.items() if item[0].startswith(_READ) and item[0] not in _SET),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def _code(config: Config) -> Iterator[Path]:
    """This package, custom/, and the repository's own modules that params.yaml names."""
    yield from Path(__file__).parents[1].rglob("*.py")
    yield from repository.CUSTOM.rglob("*.py")
    for path in config.paths():
        module = path.partition(".")[0]
        if "." in path and module:
            yield from Path().glob(f"{module}.py")
            yield from Path(module).rglob("*.py")


def _cpu() -> str:
    """The first processor's name and abilities, where the system says them."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.startswith(("model name", "flags", "Features")))


def _devices() -> list[str]:
    """The graphics cards that a driver has announced."""
    return sorted(each.name for each in Path("/dev").glob("nvidia[0-9]*"))
