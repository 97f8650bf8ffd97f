"""What Muon's own work costs in bf16, as torch and pytorch_optimizer have it, and in fp32, by custom/muon_fp32.py.

python benchmarks/muon.py [--rounds N]    # writes benchmarks/MUON.md
"""

import argparse
import sys

import costs
import torch
from needs import TOP

from optlab.environment import has_native_bf16
from optlab.schema.parameters import Config

RESULTS = TOP / "benchmarks" / "MUON.md"
ENTRIES = {"muon": "pytorch_optimizer.Muon", "muon_fp32": "muon_fp32.MuonFP32"}
BATCH_SIZES = {"zilliax": 64, "conv6": 128, "fast": 250}  # of each network's study
STEPS = 5  # in each round: one step of `fast` takes seconds


def make_config(model: str) -> Config:
    """Return the configuration of a training of one thread by both."""
    groups = [{"ndim": 4, "use_muon": True}, {"match": "*", "use_muon": False}]
    return Config.model_validate(
        {
            "model": model,
            "seeds": [0],
            "data": {"train_size": 45000, "validation_size": 10},
            "training": {"epochs": 1, "batch_size": BATCH_SIZES[model], "threads": 1},
            "optimizers": {name: {"class": path, "lr": 0.02, "groups": groups} for name, path in ENTRIES.items()},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    costs.STEPS = STEPS
    sys.path.append(str(TOP / "custom"))
    sections = [costs.measure(make_config(model), rounds) for model in BATCH_SIZES]
    has_bf16 = has_native_bf16(torch.device("cpu"))
    text = (
        "# Muon in bf16 and in fp32\n\n"
        "The Newton–Schulz iterations of Muon run in bf16; those of `muon_fp32` run in fp32. All is measured with "
        "`numerics: fast`. This CPU "
        f"{'has' if has_bf16 else 'has no'} bf16 instructions{'' if has_bf16 else ', so torch emulates bf16'}. "
        "`python benchmarks/muon.py` writes this page.\n\n" + "\n".join(sections)
    )
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
