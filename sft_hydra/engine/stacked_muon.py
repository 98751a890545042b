"""Muon for stacks of matrices, the weights of all experts of a layer: each matrix is orthogonalised alone.

Owns that an expert is updated as torch.optim.Muon would update it by itself. Stacks are spread over ranks by experts, so
every rank has whole matrices and nothing is gathered.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sft_hydra.parallel.dtensor import local_shard

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients and smallest norm of torch.optim.Muon
SMALLEST = 1e-7


class StackedMuon(torch.optim.Optimizer):
    """Over parameters (experts, rows, columns). Rates and decay as in torch.optim.Muon."""

    def __init__(
        self,
        stacks: list[nn.Parameter] | list[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(stacks, defaults | {"nesterov": nesterov, "ns_steps": ns_steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for stack in group["params"]:
                if stack.grad is not None:
                    self._update(stack, group)

    def _update(self, stack: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[stack]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(stack.grad)
        weight, gradient, momentum = (local_shard(x)[0] for x in (stack, stack.grad, state["momentum_buffer"]))
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        rows, columns = weight.shape[1:]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(orthogonal(direction, group["ns_steps"]), alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonal(stack: torch.Tensor, steps: int) -> torch.Tensor:
    """About U V^T of each matrix U S V^T in `stack` (experts, rows, columns), by Newton-Schulz in bf16."""
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[1] > stack.shape[2]
    x = stack.bfloat16().mT if tall else stack.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
