"""The weighted sum of the outputs of each token's experts, gathered in the same kernel, and its gradient, in Triton: no
(tokens, k, hidden) tensor is made."""

from typing import Any

import torch
import triton
import triton.language as tl

from sft_hydra.kernels.custom_operator import operator

BLOCK = 1024


@triton.jit
def _forward_kernel(outputs, positions, weights, out, width, K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(K):
        row = tl.load(positions + token * K + i)
        share = tl.load(weights + token * K + i).to(tl.float32)
        total += share * tl.load(outputs + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    grad, outputs, positions, weights, to_outputs, to_weights, width, K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    for i in range(K):
        row = tl.load(positions + token * K + i)
        share = tl.load(weights + token * K + i).to(tl.float32)
        products = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < width
            upstream = tl.load(grad + token * width + columns, mask=inside, other=0.0).to(tl.float32)
            products += upstream * tl.load(outputs + row * width + columns, mask=inside, other=0.0).to(tl.float32)
            result = (share * upstream).to(to_outputs.dtype.element_ty)
            tl.store(to_outputs + row * width + columns, result, mask=inside)
        tl.store(to_weights + token * K + i, tl.sum(products, 0).to(to_weights.dtype.element_ty))


def _forward(outputs: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    out = _forward_fake(outputs, positions, weights)
    tokens, k = weights.shape
    if tokens:
        grid = (tokens, triton.cdiv(outputs.shape[1], BLOCK))
        _forward_kernel[grid](outputs, positions, weights, out, outputs.shape[1], K=k, BLOCK=BLOCK)
    return out


def _forward_fake(outputs: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return outputs.new_empty(len(weights), outputs.shape[1])


def _backward(
    grad: torch.Tensor, outputs: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    to_outputs, to_weights = torch.empty_like(outputs), torch.empty_like(weights)
    tokens, k = weights.shape
    if tokens:
        _backward_kernel[(tokens,)](
            grad, outputs, positions, weights, to_outputs, to_weights, outputs.shape[1], K=k, BLOCK=BLOCK
        )
    return to_outputs, to_weights


forward = operator(
    "combine(Tensor outputs, Tensor positions, Tensor weights) -> Tensor",
    _forward,
    _forward_fake,
)
backward = operator(
    "combine_backward(Tensor grad, Tensor outputs, Tensor positions, Tensor weights) -> (Tensor, Tensor)",
    _backward,
    lambda grad, outputs, positions, weights: (torch.empty_like(outputs), torch.empty_like(weights)),
)


def combine(outputs: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(T, hidden): the sum of `weights[t, i] * outputs[positions[t * k + i]]` over i, in fp32, of the dtype of `outputs`.

    `outputs` (T * k, hidden), `positions` (T * k,) int64 a permutation, `weights` (T, k).
    """
    return _Combine.apply(outputs, positions, weights)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        outputs, weights = outputs.contiguous(), weights.contiguous()
        ctx.save_for_backward(outputs, positions, weights)
        return forward(outputs, positions, weights)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        to_outputs, to_weights = backward(grad.contiguous(), *ctx.saved_tensors)
        return to_outputs, None, to_weights


def example(device: torch.device) -> None:
    """One forward and backward pass."""
    outputs = torch.ones(6, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.ones(3, 2, device=device, requires_grad=True)
    combine(outputs, torch.arange(6, device=device), weights).sum().backward()
