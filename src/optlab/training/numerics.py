"""Which instructions the numerical libraries may use: variables that they read while they load.

`fast` leaves it to them. `portable` holds ATen and oneDNN to AVX2 and MKL to the one code path that Intel documents for
every make of CPU, and `optlab.portable` replaces what still depends on the make or on the number of threads:
docs/determinism.md says how far that holds. Nothing here imports torch: once it is imported, the variables are without
effect.
"""

import os
import sys

from optlab.schema.parameters import TrainingConfig
from optlab.system.errors import ConfigError

PORTABLE_VARIABLES = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}


def prepare(training: TrainingConfig) -> None:
    """Set what `training.numerics` asks for; to be called before torch is imported.

    Raises:
        ConfigError: a variable is set otherwise.
        RuntimeError: torch is imported already, without them.
    """
    if training.numerics == "fast":
        return
    is_set = all(os.environ.get(name) == value for name, value in PORTABLE_VARIABLES.items())
    if "torch" in sys.modules and is_set:  # a process that was forked from one in which they were set in time
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
