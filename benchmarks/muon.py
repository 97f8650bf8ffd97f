"""What Muon's own work costs in bf16, as torch and pytorch_optimizer have it, and in fp32, by custom/muon_fp32.py.

python benchmarks/muon.py [--rounds N]    # writes benchmarks/MUON.md
"""

import argparse
import sys

import costs
import random_step
import torch
from needs import TOP

from optlab.environment import has_native_bf16

RESULTS = TOP / "benchmarks" / "MUON.md"
CLASSES = {"muon": "pytorch_optimizer.Muon", "muon_fp32": "muon_fp32.MuonFP32"}
GROUPS = [{"ndim": 4, "use_muon": True}, {"match": "*", "use_muon": False}]
BATCH_SIZES = {"zilliax": 64, "conv6": 128, "fast": 250}  # of each network's study
STEPS = 5  # in each round: one step of `fast` takes seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    sys.path.append(str(TOP / "custom"))
    optimizers = {name: {"class": path, "lr": 0.02, "groups": GROUPS} for name, path in CLASSES.items()}
    configs = [random_step.make_config(model, size, optimizers) for model, size in BATCH_SIZES.items()]
    sections = [costs.measure(config, rounds, STEPS) for config in configs]
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
