"""Capture of the environment: packages, CPU and variables that decide a run's last bits besides params.yaml."""

import functools
import hashlib
import importlib
import inspect
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import torch

from optlab.records import Environment
from optlab.system.repository import CUSTOM
from optlab.system.source_code import find_local_module
from optlab.training.class_import import extend_sys_path
from optlab.training.numerics import PORTABLE_VARIABLES

# Read by the libraries while they load. CUBLAS_WORKSPACE_CONFIG makes cuBLAS repeatable.
ENVIRONMENT_VARIABLES = (*PORTABLE_VARIABLES, "MKL_ENABLE_INSTRUCTIONS", "CUBLAS_WORKSPACE_CONFIG")
PACKAGES = ("torch", "torchvision", "numpy", "mlflow", "dvc")

# oneDNN's names of instruction sets, the richest first, and the flags of /proc/cpuinfo that each needs; the names are
# those that ONEDNN_MAX_CPU_ISA takes (oneDNN's developer guide, "CPU Dispatcher Control").
ONEDNN_ISAS = {
    "AVX512_CORE_AMX_FP16": ("amx_fp16",),
    "AVX512_CORE_AMX": ("amx_int8", "amx_bf16"),
    "AVX512_CORE_FP16": ("avx512_fp16",),
    "AVX512_CORE_BF16": ("avx512_bf16",),
    "AVX512_CORE_VNNI": ("avx512_vnni",),
    "AVX512_CORE": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "AVX2_VNNI": ("avx_vnni",),
    "AVX2": ("avx2",),
    "AVX": ("avx",),
    "SSE41": ("sse4_1",),
}


def capture_environment(device: torch.device, paths: Sequence[str] = ()) -> Environment:
    """Return the current environment, without times, host names and paths: equal on machines of the same kind.

    Args:
        paths: of the run's model and classes, as of `Config.list_class_paths`; their packages are included.
    """
    return Environment(
        python=platform.python_version(),
        packages={name: get_installed_version(name) for name in (*PACKAGES, *_list_packages(paths))},
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_get_cpu_name(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        onednn_isa=detect_onednn_isa(os.environ.get("ONEDNN_MAX_CPU_ISA")),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        variables={name: os.environ.get(name) for name in ENVIRONMENT_VARIABLES},
        modules=_hash_imported_files(paths),
    )


def _list_packages(paths: Iterable[str]) -> list[str]:
    """Return the installed packages of dotted paths, without those that are always included."""
    modules = {path.partition(".")[0] for path in paths if "." in path}
    if not modules:
        return []
    known = _map_modules()
    return sorted({package for module in modules for package in known.get(module, ())} - set(PACKAGES))


@functools.cache  # it reads the metadata of every installed package
def _map_modules() -> Mapping[str, list[str]]:
    """Return top-level module → the installed packages that have it."""
    return packages_distributions()


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16; emulated, it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _read_cpu_info("flags").split()
    return not flags or "avx512_bf16" in flags or "amx_bf16" in flags


def detect_onednn_isa(limit: str | None = None) -> str | None:
    """Return the richest instruction set that oneDNN uses on this CPU; None if the CPU's flags cannot be read.

    Args:
        limit: as in ONEDNN_MAX_CPU_ISA.
    """
    flags = set(_read_cpu_info("flags").split())
    names = list(ONEDNN_ISAS)
    allowed = names[names.index(limit.upper()) :] if limit and limit.upper() in names else names
    return next((name for name in allowed if flags.issuperset(ONEDNN_ISAS[name])), None)


def get_installed_version(package: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _get_cpu_name() -> str:
    return _read_cpu_info("model name") or platform.processor() or platform.machine()


def _read_cpu_info(key: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; empty without such a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _hash_imported_files(paths: Iterable[str]) -> dict[str, str]:
    """Return path → SHA-256 of the files of dotted paths that are neither in custom/ nor in an installed package.

    For those, the record has digests in choice.json and versions.
    """
    dotted = [path.rpartition(".") for path in paths if "." in path]
    if not dotted:
        return {}
    extend_sys_path()
    installed, digests = _map_modules(), {}
    for module, _, attribute in dotted:
        top = module.partition(".")[0]
        own = find_local_module(top)
        if top in installed or top in sys.stdlib_module_names or (own and own.parent == CUSTOM):
            continue
        named = getattr(importlib.import_module(module), attribute, None)
        file = Path(inspect.getsourcefile(named) or "/") if callable(named) else Path("/")
        if file.is_file():
            digests[_get_import_path(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return dict(sorted(digests.items()))


def _get_import_path(file: Path) -> str:
    """Return the path relative to where it is imported from: a record has no folders of a machine."""
    bases = [base for base in (Path.cwd(), *map(Path, sys.path)) if base != Path() and file.is_relative_to(base)]
    return file.relative_to(max(bases, key=lambda base: len(base.parts))).as_posix() if bases else file.name
