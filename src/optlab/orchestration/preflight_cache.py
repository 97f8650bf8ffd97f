"""What was found of a params.yaml, kept for the next time: with the same parameters, code and packages it is the same.

A hit costs no torch. Each optimizer is kept for itself as well, so that an edit of one lets the others be. The name of
a file is a digest of all that it depends on, and the file is never changed.
"""

import contextlib
import hashlib
import json
import os
import platform
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from optlab.records import Environment
from optlab.schema.parameters import Config
from optlab.system import files, processes, repository, source_code
from optlab.system.errors import StorageError

_CACHE_FOLDER = Path(".optlab") / "checked"
_MAX_FILES = 200
_VARIABLE_PREFIXES = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "OMP_", "CUBLAS_", "CUDA_", "TORCH", "PYTORCH", "PYTHONPATH")
# By `determinism.configure_torch`, and by how many are at work: this one decides how long they take, and nothing else.
_IGNORED_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_DETERMINISTIC", "OMP_WAIT_POLICY")


class PreflightResult(BaseModel):
    """Of a params.yaml that can be used.

    Attributes:
        warnings: of what nobody has measured.
        environment: of the runs that would be made here now.
    """

    model_config = ConfigDict(frozen=True)

    warnings: list[str]
    environment: Environment


def load_cached(config: Config) -> PreflightResult | None:
    """What was found, if it was looked for."""
    try:
        return PreflightResult.model_validate_json((_CACHE_FOLDER / f"{_compute_cache_key(config)}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def load_or_run(config: Config) -> PreflightResult:
    """What is known, or is found now, in a process of its own: what a check builds and steps is not for a training.

    `numerics.prepare` was called before.

    Raises:
        ConfigError: params.yaml cannot be used.
    """
    return load_cached(config) or PreflightResult.model_validate(
        processes.call_in_fork(lambda: run_checks(config).model_dump(mode="json"))
    )


def run_checks(config: Config) -> PreflightResult:
    """Look, whole, in this process, and keep what was found.

    Raises:
        ConfigError: params.yaml cannot be used.
    """
    from optlab.environment import capture_environment
    from optlab.preflight import checks
    from optlab.training import determinism

    cache_path = _CACHE_FOLDER / f"{_compute_cache_key(config)}.json"  # now: what follows sets variables
    device = determinism.configure_torch(config.training)
    single_configs = split_config(config)
    if single_configs == [config]:
        warnings = [*checks.check_config(config), *checks.list_portability_warnings(config)]
    else:
        warnings = [
            sentence for each in single_configs for sentence in (load_cached(each) or run_checks(each)).warnings
        ]
    current_environment = capture_environment(device, config.list_class_paths())
    result = PreflightResult(warnings=list(dict.fromkeys(warnings)), environment=current_environment)
    with contextlib.suppress(StorageError, OSError):  # it is looked for again
        files.write_atomic(cache_path, result.model_dump_json().encode())
        for old in sorted(_CACHE_FOLDER.glob("*.json"), key=os.path.getmtime, reverse=True)[_MAX_FILES:]:
            old.unlink(missing_ok=True)
    return result


def split_config(config: Config) -> list[Config]:
    """It with each optimizer alone; with each of the corners of its ranges, where it has any."""
    return [
        config.model_copy(update={"optimizers": {name: each}})
        for name, spec in config.optimizers.items()
        for each in (spec.generate_extremes() if spec.ranges else [spec])
    ]


def _compute_cache_key(config: Config) -> str:
    """Return a digest of the parameters, this package, the user's modules that they name, packages and machine."""
    code = [
        *source_code.list_files(source_code.PACKAGE),
        *source_code.find_user_modules(config.list_class_paths()),
    ]
    key_parts = {
        "config": config.model_dump(mode="json"),
        "code": source_code.hash_files(code),
        "machine": compute_machine_digest(),
        "memory": processes.get_total_memory(),
    }
    return hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()


def compute_machine_digest() -> str:
    """A digest of the packages, of what the machine decides, and of the variables that the libraries read."""
    digest_parts = {
        "packages": repository.list_installed_packages(),
        "machine": [platform.python_version(), platform.platform(), _read_cpu_info(), *_list_gpus()],
        "variables": sorted(
            item
            for item in os.environ.items()
            if item[0].startswith(_VARIABLE_PREFIXES) and item[0] not in _IGNORED_VARIABLES
        ),
    }
    return hashlib.sha256(json.dumps(digest_parts, sort_keys=True).encode()).hexdigest()[:32]


def _read_cpu_info() -> str:
    """The first processor's name and abilities, where the system says them."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.startswith(("model name", "flags", "Features")))


def _list_gpus() -> list[str]:
    """The graphics cards that a driver has announced."""
    return sorted(each.name for each in Path("/dev").glob("nvidia[0-9]*"))
