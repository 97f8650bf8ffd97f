"""Variables that limit the instructions of the numerical libraries; they are read while torch is imported.

`fast` sets none. `portable` limits ATen and oneDNN to AVX2, and MKL to the code path that Intel documents for every
make of CPU; `portable_kernels` replaces operations that still depend on the make or on the number of threads.
docs/determinism.md has the measurements. This module must not import torch.
"""

import os
import sys

from optlab.schema.parameters import TrainingConfig
from optlab.system.errors import ConfigError

PORTABLE_VARIABLES = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}


def prepare(training: TrainingConfig) -> None:
    """Set the variables for `training.numerics`; to be called before torch is imported.

    Raises:
        ConfigError: a variable has another value.
        RuntimeError: torch is imported already, without the variables.
    """
    if training.numerics == "fast":
        return
    is_set = all(os.environ.get(name) == value for name, value in PORTABLE_VARIABLES.items())
    if "torch" in sys.modules and is_set:  # forked from a process that set them in time
        return
    for name, value in PORTABLE_VARIABLES.items():
        if os.environ.get(name, value).lower() != value.lower():
            raise ConfigError(
                f"params.yaml: training.numerics: portable needs {name}={value}, but it is set to "
                f"{os.environ[name]}: unset it"
            )
    if "torch" in sys.modules:
        raise RuntimeError("numerics.prepare must be called before torch is imported")
    os.environ |= PORTABLE_VARIABLES
