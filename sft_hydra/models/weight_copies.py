"""Weights in the compute dtype, cast once for all micro-batches of an optimizer step.

A single rank casts its fp32 weights in every forward pass. Without activation recompute all copies exist when the backward
pass begins, so keeping them until the step ends does not raise the peak of memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sft_hydra.parallel.dtensor import local_tensor


class CastWeight(nn.Module):
    """A layer whose weights are used in the dtype of its input."""

    copies: dict[tuple[str, torch.dtype], torch.Tensor] | None = (
        None  # of parameters, without gradient; None: none are kept
    )

    def cast(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """This rank's shard of a parameter in `dtype`; differentiable."""
        weight = local_tensor(getattr(self, name))
        if self.copies is None or weight.dtype == dtype:
            return weight.to(dtype)
        if (name, dtype) not in self.copies:
            self.copies[name, dtype] = weight.detach().to(dtype)
        return _Cast.apply(weight, self.copies[name, dtype])


class _Cast(torch.autograd.Function):
    """The cast of a weight, by a copy that exists."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.to(ctx.dtype), None


@contextmanager
def kept_copies(model: nn.Module) -> Iterator[None]:
    """Within the context, in which weights do not change, layers cast their weights once."""
    layers = [module for module in model.modules() if isinstance(module, CastWeight)]
    for layer in layers:
        layer.copies = {}
    try:
        yield
    finally:
        for layer in layers:
            layer.copies = None
