"""Token counts and the auxiliary-loss gradient of a router with load balancing.

Padding is excluded. The gradient is that of a loss over the global batch; it is added to the gradient of the router
probabilities, independent of the divisor of the token loss.
"""

from typing import Any

import torch


def counts_of_sorted(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """(experts,) int64: how often each expert occurs in `chosen`, which is sorted. No device synchronization, unlike
    bincount."""
    ends = torch.searchsorted(chosen, torch.arange(experts, device=chosen.device), right=True)
    return ends.diff(prepend=ends.new_zeros(1))


class BalancingLoss:
    """Counters and auxiliary-loss gradient of one router with E experts. The engine sets `real` before each micro-batch."""

    def __init__(self, experts: int, device: torch.device) -> None:
        self.real = 0  # number of local tokens that are not padding; padding comes last
        self.tokens = 0  # tokens counted so far
        self.counts = torch.zeros(experts, dtype=torch.int64, device=device)  # tokens routed to each expert
        self.sums = torch.zeros(experts, device=device)  # sums of router probabilities
        self.gradient: torch.Tensor | None = None  # (E,): gradient of the balancing loss for each token's probabilities

    def observe(self, probabilities: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Count the routed tokens and return `probabilities` (t, E), with the auxiliary gradient attached; `experts` (t, k)
        are the selected experts."""
        self.tokens += self.real
        self.counts += counts_of_sorted(experts[: self.real].flatten().sort().values, len(self.counts))
        self.sums += probabilities[: self.real].detach().sum(0)
        if self.gradient is None:
            return probabilities
        extra = torch.zeros_like(probabilities)
        extra[: self.real] = self.gradient
        return _AddGradient.apply(probabilities, extra)

    def reset(self) -> None:
        """Set all counters to zero."""
        self.tokens = 0
        self.counts.zero_()
        self.sums.zero_()


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(extra)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad + ctx.saved_tensors[0], None
