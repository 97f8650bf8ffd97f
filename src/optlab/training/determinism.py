"""What decides the last bits of a result besides params.yaml: set what can be set, record the rest.

The global random generators that models and optimizers may draw from: Python's, NumPy's and torch's.

What the batches and the points of a tuning are drawn by is none of them.
"""

import contextlib
import os
import platform
import random
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optlab.records import Environment
from optlab.schema.parameters import TrainingConfig
from optlab.system import processes
from optlab.training import class_import, portable_kernels
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


def configure_torch(training: TrainingConfig) -> torch.device:
    """Fix the number of threads, choose repeatable algorithms, limit the memory, and return the device to train on."""
    torch.set_num_threads(training.threads)
    if training.numerics == "portable":
        portable_kernels.install()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"  # for a model that compiles itself
    torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms, which imports the compiler for that
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs speed
    torch.backends.cudnn.benchmark = False
    if torch.cuda.is_available():
        return torch.device("cuda")
    processes.limit_memory()  # a GPU's driver reserves more than it uses
    return torch.device("cpu")


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
        modules=class_import.hash_imported_files(paths),
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


def seed_all(number: int) -> None:
    """Begin all of them anew, at a number from 0 to 2³² - 1."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def get_rng_state() -> dict[str, Any]:
    """Where all of them are, as tensors, numbers and texts."""
    kind, key, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(key, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Bring all of them to where they were."""
    kind, key, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def fork_rng() -> Iterator[None]:
    """What is done within draws no number of the training's."""
    before = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
