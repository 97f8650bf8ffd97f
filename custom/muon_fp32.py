"""Muon whose Newton–Schulz iterations run in fp32: CPUs without bf16 instructions emulate bf16, many times slower."""

from typing import Any

import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from torch import Tensor


class MuonFP32(pytorch_optimizer.Muon):
    """Muon (Jordan et al., 2024) as pytorch_optimizer has it, except for the precision of these iterations."""

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        return [
            zero_power_via_newton_schulz_5(
                update.flatten(1), num_steps=group["ns_steps"], weights=group["ns_coeffs"], dtype=torch.float32
            )
            for update in updates
        ]
