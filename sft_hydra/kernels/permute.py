"""Rows in another order, with a gradient that is a gather too.

autograd's own gradient of indexing adds rows up one by one, since it cannot know that none comes twice: on CUDA it sorts
the indices anew and is many times slower.
"""

from typing import Any

import torch


def inverse_of(order: torch.Tensor) -> torch.Tensor:
    """The permutation (N,) that undoes `order` (N,)."""
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, places)


def permuted(x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, copies: int = 1) -> torch.Tensor:
    """Rows (N * copies, ...) of x (N, ...), each of which is there `copies` times, in the `order` (N * copies,)."""
    return _Permuted.apply(x, order, inverse, copies)


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, copies: int) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return x[order if copies == 1 else order // copies]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = grad[inverse]
        return rows if ctx.copies == 1 else rows.unflatten(0, (-1, ctx.copies)).sum(1), None, None, None
