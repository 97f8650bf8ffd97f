"""Train small cases in a process of its own and print their digests; what the tests of determinism start.

    python tests/digests.py DATA THREADS NUMERICS CASE…

A case is model:optimizer:precision:batch_size, such as zilliax:Adam:fp32:64. conv6 has augmented images and smoothed
labels besides.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from optlab.schema.parameters import Config
from optlab.training import numerics

# What is not of torch.optim. For Muon, a convolution's filters are the rows of a matrix.
_MATRICES = [{"ndim": 4, "use_muon": True}, {"match": "7.weight", "use_muon": True}, {"match": "*", "use_muon": False}]
_FILTERS = [{"ndim": 4, "use_muon": True}, {"match": "*", "use_muon": False}]
OTHERS: dict[str, dict[str, Any]] = {
    "Lion": {"class": "pytorch_optimizer.Lion"},
    "MuonOfMatrices": {"class": "pytorch_optimizer.Muon", "groups": _MATRICES},
    "MuonOfFilters": {"class": "pytorch_optimizer.Muon", "groups": _FILTERS},
    "ScheduleFree": {"class": "schedulefree.AdamWScheduleFree"},
}


def config(case: str, threads: int, kind: str) -> Config:
    model, optimizer, precision, batch_size = case.split(":")
    spec: dict[str, Any] = {"class": optimizer}
    if optimizer in OTHERS:
        spec = OTHERS[optimizer]
    if optimizer == "Muon":
        spec["fallback"] = {"class": "AdamW", "lr": 0.001}
    if optimizer == "LBFGS":
        spec["max_iter"] = 4
    size = {"fast": 10, "portable": 20}[kind] if model == "resnet18" else 200  # 200 in batches of 64 leave one of 8
    stronger = model == "conv6"
    return Config.model_validate(
        {
            "model": model,
            "seeds": [0],
            "data": {"dataset": "cifar10_sample", "train_size": size, "validation_size": 10,
                     "augment": "flip_crop" if stronger else "none"},
            "training": {"epochs": 1, "batch_size": int(batch_size), "precision": precision, "threads": threads,
                         "numerics": kind, "label_smoothing": 0.1 if stronger else 0.0},
            "optimizers": {"mine": spec},
        }
    )  # fmt: skip


def main() -> None:
    folder, threads, kind, cases = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    configs = {case: config(case, threads, kind) for case in cases}
    numerics.prepare(configs[cases[0]].training)
    from optlab.data import cifar10
    from optlab.training import determinism, loop

    device, found = determinism.configure_torch(configs[cases[0]].training), {}
    for case, settings in configs.items():
        outcome = loop.train(settings, "mine", 0, cifar10.load(folder, settings.data, 0), device)
        losses = repr((outcome.step_losses, outcome.epochs)).replace("EpochMetrics(", "Epoch(")
        digest = hashlib.sha256(re.sub(r", gradients=\d+", "", losses).encode())  # the text that the kept ones are of
        for value in outcome.model.state_dict().values():
            digest.update(value.numpy().tobytes())
        found[case] = digest.hexdigest()[:16]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
