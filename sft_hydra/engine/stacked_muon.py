"""Muon (Keller Jordan 2024) for stacked matrices, the weights of all experts of a layer: each matrix is orthogonalized
by itself.

An expert gets the update that torch.optim.Muon would give it as a single matrix. Stacks are sharded by expert, so every
rank has complete matrices and no all-gather is needed.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sft_hydra.parallel.dtensor import local_shard

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients and minimum norm of torch.optim.Muon
MIN_NORM = 1e-7


class StackedMuon(torch.optim.Optimizer):
    """Muon over parameters (experts, rows, columns). Learning rate and weight decay as in torch.optim.Muon."""

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
    """Approximately U V^T of each matrix U S V^T in `stack` (experts, rows, columns): quintic Newton-Schulz iteration in
    bf16, `steps` iterations. Returns bf16 of the same shape."""
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[1] > stack.shape[2]
    x = stack.bfloat16().mT if tall else stack.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=MIN_NORM)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
