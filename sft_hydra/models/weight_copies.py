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
    """A layer with a `weight` that is used in the dtype of its input."""

    weight: nn.Parameter
    keeps_copy = False
    copy: torch.Tensor | None = None  # of this rank's weight in the compute dtype, without gradient

    def cast_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """This rank's weight in `dtype`; differentiable."""
        weight = local_tensor(self.weight)
        if not self.keeps_copy or weight.dtype == dtype:
            return weight.to(dtype)
        if self.copy is None or self.copy.dtype != dtype:
            self.copy = weight.detach().to(dtype)
        return _Cast.apply(weight, self.copy)


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
        layer.keeps_copy = True
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps_copy, layer.copy = False, None
