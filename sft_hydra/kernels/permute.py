"""Row permutation whose gradient is a gather.

autograd's gradient of indexing is a scatter-add, since indices may repeat: on CUDA it sorts the indices again and is many
times slower.
"""

from typing import Any

import torch

from sft_hydra.kernels.fused_choice import is_fused


def inverse_of(order: torch.Tensor) -> torch.Tensor:
    """The permutation (N,) that undoes `order` (N,)."""
    positions = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, positions)


def permuted(x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, copies: int = 1) -> torch.Tensor:
    """(N * copies, ...): the rows of x (N, ...), each repeated `copies` times, in the `order` (N * copies,); `inverse` is
    `inverse_of(order)`."""
    return _Permuted.apply(x, order, inverse, copies)


def combined(outputs: torch.Tensor, weights: torch.Tensor, inverse: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """(T, hidden): for each token the sum of its k rows of `outputs` (T * k, hidden), which are in the `order` of `permuted`,
    times its `weights` (T, k) fp32. Of the dtype of `outputs`, or fp32."""
    if is_fused("combine", outputs):
        from sft_hydra.kernels.fused import combine as triton_combine

        return triton_combine.combine(outputs, inverse, weights)
    by_token = permuted(outputs, inverse, order).unflatten(0, weights.shape)  # (T, k, hidden)
    return (by_token * weights[..., None]).sum(1)


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
