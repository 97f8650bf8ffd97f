"""Which instructions the numerical libraries may use: variables that they read while they load.

`fast` leaves it to them. `portable` holds ATen, oneDNN and MKL to AVX2, and MKL to one code path for every number of
threads, so that 1, 2 and 4 threads, and CPUs with and without AVX-512, round alike: docs/determinism.md says how far.
Nothing here imports torch: once it is imported, the variables are without effect.
"""

import os
import sys

from optlab.config import Config, Training
from optlab.errors import ConfigError

PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}


def prepare(training: Training) -> None:
    """Set what `training.numerics` asks for; to be called before torch is imported.

    Raises:
        ConfigError: a variable is set otherwise.
        RuntimeError: torch is imported already.
    """
    if training.numerics == "fast":
        return
    for name, value in PORTABLE.items():
        if os.environ.get(name, value).lower() != value.lower():
            raise ConfigError(
                f"params.yaml: training.numerics: portable needs {name}={value}, but it is set to "
                f"{os.environ[name]}: unset it"
            )
    if "torch" in sys.modules:
        raise RuntimeError("numerics.prepare must be called before torch is imported")
    os.environ |= PORTABLE


def limits(config: Config) -> list[str]:
    """Why `portable` does not give the same bits for every number of threads here, one sentence a reason.

    Found by measurement: docs/determinism.md.
    """
    if config.training.numerics == "fast":
        return []
    found = []
    if config.model != "zilliax":
        found.append(f"model {config.model}: batch normalisation is summed by thread; only zilliax was found to agree")
    for name, spec in config.optimizers.items():
        if spec.class_ == "LBFGS" or "." in spec.class_:
            found.append(f"optimizers.{name}: {spec.class_} is not among those found to agree")
    sizes = {config.training.batch_size, config.data.train_size % config.training.batch_size}
    for size in sorted(sizes & set(range(2, 10))):
        found.append(f"batches of {size} images (2 to 9 do not agree): choose another batch_size, such as 50")
    return [f"warning: numerics: portable: other numbers of threads give other bits: {reason}" for reason in found]
