"""An optimizer of one's own: each weight moves by the learning rate, against the sign of its gradient."""

from collections.abc import Callable

import torch
from torch import Tensor


class SignDescent(torch.optim.Optimizer):
    """signSGD (Bernstein et al., 2018, algorithm 1): w ← w - lr · sign(∂loss/∂w)."""

    def __init__(self, params: list[Tensor], lr: float = 3e-4) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Move the weights once; returns the loss that `closure` computes, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.add_(weight.grad.sign(), alpha=-group["lr"])
        return loss
