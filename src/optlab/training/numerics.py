"""Which instructions the numerical libraries may use: variables that they read while they load.

`fast` leaves it to them. `portable` holds ATen and oneDNN to AVX2 and MKL to the one code path that Intel documents for
every make of CPU, and `optlab.portable` replaces what still depends on the make or on the number of threads:
docs/determinism.md says how far that holds. Nothing here imports torch: once it is imported, the variables are without
effect.
"""

import os
import sys

from optlab.schema.parameters import Config, TrainingConfig
from optlab.system.errors import ConfigError

PORTABLE_VARIABLES = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
# The classes that `portable` was measured with, by the model that they trained: docs/determinism.md tells how.
TESTED_CLASSES = {
    "zilliax": (
        "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam",
        "RMSprop", "Rprop", "SGD", "pytorch_optimizer.Lion", "pytorch_optimizer.Muon",
        "schedulefree.AdamWScheduleFree",
    ),
    "conv6": ("SGD", "AdamW", "pytorch_optimizer.Muon"),
    "resnet18": ("SGD", "Adam"),
}  # fmt: skip


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


def list_portability_warnings(config: Config) -> list[str]:
    """What nobody has measured `portable` with, one sentence each: docs/determinism.md has what was."""
    if config.training.numerics == "fast":
        return []
    if config.model not in TESTED_CLASSES:
        untested = [f"model: {config.model}"]
    else:
        untested = [
            f"optimizers.{name}: {each} on {config.model}"
            for name, spec in config.optimizers.items()
            for each in spec.classes
            if each not in TESTED_CLASSES[config.model]
        ]
    return [
        f"warning: numerics: portable: {each} is not among what was measured: another make of CPU or number of threads "
        f"may give other bits"
        for each in untested
    ]
