"""Cache of the results of the checks of params.yaml, which a hit answers without importing torch.

The name of a file is a digest of all that decides its content: parameters, code, packages and machine. Each optimizer
has a file of its own, too, so that an edit of one does not repeat the checks of the others.
"""

import contextlib
import hashlib
import json
import os
import platform
import signal
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from optlab.records import Environment
from optlab.schema.parameters import Config
from optlab.system import files, processes, repository, source_code
from optlab.system.errors import ResourceError, StorageError

_CACHE_FOLDER = Path(".optlab") / "checked"
_MAX_FILES = 200
_MAX_MEASUREMENT_S = 20
_VARIABLE_PREFIXES = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "OMP_", "CUBLAS_", "CUDA_", "TORCH", "PYTORCH", "PYTHONPATH")
# Set by `determinism.configure_torch`, but for the last one, which decides speed only.
_IGNORED_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_DETERMINISTIC", "OMP_WAIT_POLICY")


class PreflightResult(BaseModel):
    """Result for a valid params.yaml.

    Attributes:
        warnings: one sentence each.
        environment: of runs on this machine.
        has_native_bf16: whether the machine multiplies bfloat16.
        bf16_saving: the part of a step's time that bf16 saves over fp32; None if it was not measured.
    """

    model_config = ConfigDict(frozen=True)

    warnings: list[str]
    environment: Environment
    has_native_bf16: bool
    bf16_saving: float | None = None


def load_cached(config: Config) -> PreflightResult | None:
    """Return the cached result, or None without one."""
    return _read(compute_cache_key(config))


def _read(cache_key: str) -> PreflightResult | None:
    try:
        return PreflightResult.model_validate_json((_CACHE_FOLDER / f"{cache_key}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def load_or_run(config: Config) -> PreflightResult:
    """Return the cached result, or run the checks in a child process, so that they leave no trace in a training's.

    Call `numerics.prepare` first.

    Raises:
        ConfigError: params.yaml cannot be used.
    """
    return load_cached(config) or PreflightResult.model_validate(
        processes.call_in_fork(lambda: run_checks(config).model_dump(mode="json"))
    )


def load_or_measure_bf16_saving(config: Config, preflight: PreflightResult) -> float:
    """Return the part of a step's time that bf16 saves on this machine, measured once in a child process.

    It is 0 where bf16 cannot be used or is used already, and where the measurement fails or does not end in time.
    """
    training = config.training
    if not preflight.has_native_bf16 or training.precision == "bf16" or training.numerics == "portable":
        return 0.0
    if preflight.bf16_saving is not None:
        return preflight.bf16_saving

    def measure() -> float:
        signal.alarm(_MAX_MEASUREMENT_S)  # its default action ends the child
        from optlab.preflight import step_time

        return step_time.measure_bf16_saving(config)

    cache_key, saving = compute_cache_key(config), 0.0
    with contextlib.suppress(ResourceError, ChildProcessError):
        saving = float(processes.call_in_fork(measure))
    if checked := _read(cache_key):  # None if the code was edited meanwhile
        _save(cache_key, checked.model_copy(update={"bf16_saving": saving}))
    return saving


def run_checks(config: Config) -> PreflightResult:
    """Run the checks in this process, and cache the result.

    Raises:
        ConfigError: params.yaml cannot be used.
    """
    from optlab.environment import capture_environment, has_native_bf16
    from optlab.preflight import checks
    from optlab.training import determinism

    cache_key = compute_cache_key(config)  # before the checks, which set variables
    device = determinism.configure_torch(config.training)
    single_configs = split_config(config)
    if single_configs == [config]:
        warnings = [*checks.check_config(config), *checks.list_portability_warnings(config)]
    else:
        warnings = [
            sentence for each in single_configs for sentence in (load_cached(each) or run_checks(each)).warnings
        ]
    current_environment = capture_environment(device, config.list_class_paths())
    result = PreflightResult(
        warnings=list(dict.fromkeys(warnings)),
        environment=current_environment,
        has_native_bf16=has_native_bf16(device),
    )
    _save(cache_key, result)
    return result


def _save(cache_key: str, result: PreflightResult) -> None:
    with contextlib.suppress(StorageError, OSError):  # without a cache, the checks run again
        files.write_atomic(_CACHE_FOLDER / f"{cache_key}.json", result.model_dump_json().encode())
        for old in sorted(_CACHE_FOLDER.glob("*.json"), key=os.path.getmtime, reverse=True)[_MAX_FILES:]:
            old.unlink(missing_ok=True)


def split_config(config: Config) -> list[Config]:
    """Return a configuration for each optimizer alone, and for each combination of the ends of its ranges."""
    return [
        config.model_copy(update={"optimizers": {name: each}})
        for name, spec in config.optimizers.items()
        for each in (spec.generate_extremes() if spec.ranges else [spec])
    ]


def compute_cache_key(config: Config) -> str:
    """Return a digest of the parameters, this package, the user's modules that they name, packages and machine."""
    code = [
        *source_code.list_files(source_code.PACKAGE),
        *source_code.find_user_modules(config.list_class_paths()),
    ]
    key_parts = {
        "config": config.model_dump(mode="json", exclude={"seeds", "verdict", "tuning"}),  # no check reads these
        "code": source_code.hash_files(code),
        "machine": compute_machine_digest(),
        "memory": processes.get_total_memory(),
    }
    return hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()


def compute_machine_digest() -> str:
    """Return a digest of packages, Python, processor, GPUs and the variables that numerical libraries read."""
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
    """Return model name and instruction sets of the first processor, where the system has them."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.startswith(("model name", "flags", "Features")))


def _list_gpus() -> list[str]:
    """Return the NVIDIA devices."""
    return sorted(each.name for each in Path("/dev").glob("nvidia[0-9]*"))
