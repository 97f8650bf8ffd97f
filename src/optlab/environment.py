"""Capture of the environment: packages, CPU and variables that decide a run's last bits besides params.yaml."""

import hashlib
import importlib
import inspect
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import torch

from optlab.records import Environment
from optlab.system.repository import CUSTOM
from optlab.training.class_import import extend_sys_path, find_local_module
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
    """The conditions in force, without times, host names or paths: the same on machines of the same kind.

    Args:
        paths: of what a run is made of, as `Config.list_class_paths` has them; the packages of dotted ones count as
            well.
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
    """The installed packages, besides those that always count, that dotted paths lead into."""
    modules = {path.partition(".")[0] for path in paths if "." in path}
    if not modules:
        return []
    known = packages_distributions()
    return sorted({package for module in modules for package in known.get(module, ())} - set(PACKAGES))


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulated, it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _read_cpu_info("flags").split()
    return not flags or "avx512_bf16" in flags or "amx_bf16" in flags


def detect_onednn_isa(limit: str | None = None) -> str | None:
    """The instruction set that oneDNN uses under a limit, as ONEDNN_MAX_CPU_ISA names it: the richest of the CPU's.

    None where the CPU's flags cannot be read.
    """
    flags = set(_read_cpu_info("flags").split())
    names = list(ONEDNN_ISAS)
    allowed = names[names.index(limit.upper()) :] if limit and limit.upper() in names else names
    return next((name for name in allowed if flags.issuperset(ONEDNN_ISAS[name])), None)


def get_installed_version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _get_cpu_name() -> str:
    return _read_cpu_info("model name") or platform.processor() or platform.machine()


def _read_cpu_info(key: str) -> str:
    """A field of the first processor in /proc/cpuinfo, or nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _hash_imported_files(paths: Iterable[str]) -> dict[str, str]:
    """Path → SHA-256 of the files that dotted paths lead to, of those of no installed package and not in custom/.

    What these are is recorded otherwise: by a version, and as a dependency.
    """
    dotted = [path.rpartition(".") for path in paths if "." in path]
    if not dotted:
        return {}
    extend_sys_path()
    installed, digests = packages_distributions(), {}
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
    """As it is imported: no folder of this machine belongs into a record."""
    bases = [base for base in (Path.cwd(), *map(Path, sys.path)) if base != Path() and file.is_relative_to(base)]
    return file.relative_to(max(bases, key=lambda base: len(base.parts))).as_posix() if bases else file.name
