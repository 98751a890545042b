"""What a router is told and asked when its experts are to be used evenly: counts of tokens, and a pull on its probabilities.

Owns that padding takes no part, and that the pull is the gradient of a loss over the whole global batch: it is added to
that of the probabilities themselves, whatever the loss of the tokens is divided by.
"""

from typing import Any

import torch


def counts_of_sorted(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """(experts,) int64: how often each expert is among `chosen`, which is sorted. Unlike bincount, asks nothing of a device."""
    ends = torch.searchsorted(chosen, torch.arange(experts, device=chosen.device), right=True)
    return ends.diff(prepend=ends.new_zeros(1))


class BalancingLoss:
    """Of one router with E experts. The engine sets `real` before each micro-batch."""

    def __init__(self, experts: int, device: torch.device) -> None:
        self.real = 0  # so many of this rank's tokens, the first ones, are no padding
        self.tokens = 0  # that were seen
        self.counts = torch.zeros(experts, dtype=torch.int64, device=device)  # of tokens that chose each expert
        self.sums = torch.zeros(experts, device=device)  # of probabilities
        self.pull: torch.Tensor | None = None  # (E,): gradient of the balancing loss for each token's probabilities

    def see(self, probabilities: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Count, and return the probabilities (t, E); `experts` (t, k) are those that were chosen."""
        self.tokens += self.real
        self.counts += counts_of_sorted(experts[: self.real].flatten().sort().values, len(self.counts))
        self.sums += probabilities[: self.real].detach().sum(0)
        if self.pull is None:
            return probabilities
        pull = torch.zeros_like(probabilities)
        pull[: self.real] = self.pull
        return _AddGradient.apply(probabilities, pull)

    def forget(self) -> None:
        """Begin to count anew."""
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
