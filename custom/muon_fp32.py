"""Muon whose Newton–Schulz iterations run in fp32: CPUs without bf16 instructions emulate bf16, many times slower."""

from collections.abc import Sequence
from typing import Any

import pytorch_optimizer
from torch import Tensor


class MuonFP32(pytorch_optimizer.Muon):
    """Muon (Jordan et al., 2024) as pytorch_optimizer has it, except for the precision of these iterations."""

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        if group["ns_method"] != "newton_schulz":
            raise ValueError(f"ns_method: {group['ns_method']}: MuonFP32 has newton_schulz only")
        return [
            orthogonalize(update.reshape(update.size(0), -1), group["ns_steps"], group["ns_coeffs"])
            for update in updates
        ]


def orthogonalize(matrix: Tensor, steps: int, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """Approximate the nearest orthogonal matrix: X ← aX + (bA + cA²)X with A = XXᵀ, from X = matrix / its norm."""
    is_tall = matrix.size(0) > matrix.size(1)  # then XᵀX is the smaller product
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for index in range(steps):
        a, b, c = coefficients[min(index, len(coefficients) - 1)]
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
