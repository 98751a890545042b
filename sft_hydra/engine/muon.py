"""Muon for hidden matrices and for stacks of them, the weights of all experts of a layer: each matrix is orthogonalised
alone.

Owns in which precision that is done; torch.optim.Muon knows bf16 alone. Otherwise a matrix is updated as by
torch.optim.Muon. Stacks are spread over ranks by experts, so every rank has whole matrices and gathers nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sft_hydra.parallel.dtensor import local_shard

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients and smallest norm of torch.optim.Muon
SMALLEST = 1e-7


class Muon(torch.optim.Optimizer):
    """Over parameters (rows, columns) and (experts, rows, columns). Rates and decay as in torch.optim.Muon.

    `dtype` is what the iteration computes in: fp32, or bf16, which is faster where the device multiplies bf16 fast. In bf16
    the update depends on the order of sums in its third digit, and so on the layout.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter] | list[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        dtype: torch.dtype,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(matrices, defaults | {"nesterov": nesterov, "ns_steps": ns_steps})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        tensors = (parameter.detach(), parameter.grad, state["momentum_buffer"])
        weight, gradient, momentum = (local_shard(x)[0] for x in tensors) if parameter.ndim == 3 else tensors
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        rows, columns = weight.shape[-2:]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        update = orthogonal(direction, group["ns_steps"], self.dtype)
        weight.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonal(matrices: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """About U V^T of the matrix U S V^T (rows, columns), or of each in a stack (experts, rows, columns), by Newton-Schulz in
    `dtype`, of which the result is."""
    a, b, c = NEWTON_SCHULZ
    multiply_add = torch.addmm if matrices.ndim == 2 else torch.baddbmm
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype).mT if tall else matrices.to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST)
    for _ in range(steps):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
