"""Digest single operations of a training, in a process of its own; what the tests of determinism start.

    python tests/operations.py THREADS…

Prints `{"libraries": {…}, "1": {…}, "2": {…}}`: name → digest, with one thread as ATen, oneDNN and MKL compute them
under the variables of `numerics: portable`, and then with what `training.portable_kernels` replaces, for each number of
threads. The inputs come from numpy's PCG64, whose floats are the same everywhere.
"""

import hashlib
import json
import os
import sys

from optlab.training.numerics import PORTABLE_VARIABLES

os.environ |= PORTABLE_VARIABLES

import numpy as np
import torch
import torch.nn.functional as F

from optlab.training import portable_kernels

CONVOLUTIONS = {"conv1": (3, 32, 32), "conv2": (32, 32, 16), "conv3": (32, 64, 8)}  # channels in and out, size
LINEAR = {"linear1": (1024, 64), "linear2": (64, 10)}  # numbers in and out
BATCHES = (64, 50, 8)


class Digests:
    """Draws inputs, and keeps the digest of each result."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.generator = np.random.default_rng(0)

    def draw(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.from_numpy((self.generator.standard_normal(shape) * scale).astype(np.float32))

    def images(self, *shape: int) -> torch.Tensor:
        return self.draw(*shape).contiguous(memory_format=torch.channels_last)

    def note(self, name: str, *values: torch.Tensor) -> None:
        digest = hashlib.sha256()
        for value in values:
            digest.update(value.detach().contiguous().numpy().tobytes())
        self.found[name] = digest.hexdigest()[:12]


def of_layers(digests: Digests, batch: int) -> None:
    digests.generator = np.random.default_rng(batch)

    def layer(name, x, w, b, compute, output_gradient):
        y = compute(x.requires_grad_(), w.requires_grad_(), b.requires_grad_())
        digests.note(f"{name} forward {batch}", y)
        gradients = torch.autograd.grad(y, (x, w, b), output_gradient(*y.shape))
        for kind, value in zip(("input", "weight", "bias"), gradients, strict=True):
            digests.note(f"{name} {kind} gradient {batch}", value)

    for name, (cin, cout, size) in CONVOLUTIONS.items():
        x, w, b = digests.images(batch, cin, size, size), digests.draw(cout, cin, 5, 5, scale=0.1), digests.draw(cout)
        layer(name, x, w, b, lambda x, w, b: F.conv2d(x, w, b, padding=2), digests.images)
    for name, (fin, fout) in LINEAR.items():
        x, w, b = digests.draw(batch, fin), digests.draw(fout, fin, scale=0.1), digests.draw(fout)
        layer(name, x, w, b, F.linear, digests.draw)
    x = digests.images(batch, 32, 32, 32).requires_grad_()
    y = F.max_pool2d(x, 2)
    digests.note(f"max_pool {batch}", y, torch.autograd.grad(y.sum(), x)[0])
    x, labels = digests.draw(batch, 10).requires_grad_(), torch.arange(batch) % 10
    loss = F.cross_entropy(x, labels)
    digests.note(f"cross_entropy {batch}", loss)
    digests.note(f"cross_entropy gradient {batch}", torch.autograd.grad(loss, x)[0])


def everything() -> dict[str, str]:
    digests = Digests()
    for batch in BATCHES:
        of_layers(digests, batch)
    digests.generator = np.random.default_rng(0)
    value, grad = digests.draw(51200), digests.draw(51200)
    digests.note("sqrt, divide, addcmul", value.abs().sqrt() / (grad.abs() + 1e-8) + value * grad)
    digests.note("lerp", torch.lerp(value, grad, 0.1))
    digests.note("sum", value.sum())
    digests.note("norm", value.norm())
    digests.note("exp, log", value.exp(), value.abs().log())
    digests.note("matmul 256", digests.draw(256, 256) @ digests.draw(256, 256))
    return digests.found


def main() -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    found = {"libraries": everything()}
    portable_kernels.install()
    for threads in sys.argv[1:]:
        torch.set_num_threads(int(threads))
        found[threads] = everything()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
