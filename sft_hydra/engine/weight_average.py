"""Exponential moving average of the trained weights (Polyak averaging), in fp32 or better, sharded as they are.

It starts as the weights that training starts with, so there is no bias to correct.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from sft_hydra.parallel.dtensor import local_shard

EMA = "ema"  # its name among the tensors of the optimizer's state


class WeightAverage:
    """After each step: average = decay * average + (1 - decay) * weight."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.values: dict[nn.Parameter, torch.Tensor] = {}
        for parameter in parameters:
            self.start(parameter, parameter)

    def start(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Set the average of a parameter."""
        dtype = torch.promote_types(value.dtype, torch.float32)
        self.values[parameter] = value.detach().clone().to(dtype)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average toward the weights as they are now."""
        pairs = [(local_shard(value)[0], local_shard(parameter)[0]) for parameter, value in self.values.items()]
        torch._foreach_lerp_(
            [value for value, _ in pairs], [weight.to(value.dtype) for value, weight in pairs], 1 - self.decay
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In the body the weights are their averages."""
        kept = {}
        with torch.no_grad():
            for parameter, value in self.values.items():
                mine = local_shard(parameter)[0]
                kept[parameter] = mine.clone()
                mine.copy_(local_shard(value)[0])
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, mine in kept.items():
                    local_shard(parameter)[0].copy_(mine)
