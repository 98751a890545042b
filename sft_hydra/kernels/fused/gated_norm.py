"""Mamba's gated norm, RMSNorm of y * silu(z) within groups, in one kernel, and its gradient in another, in Triton."""

from typing import Any

import torch
import triton
import triton.language as tl

from sft_hydra.kernels.custom_operator import operator, programs, warps


@triton.jit
def _forward_kernel(y, z, weight, out, groups, width, z_token, z_group, eps, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = (token * groups + group) * width + columns
    gate = tl.load(z + token * z_token + group * z_group + columns, mask=inside, other=0.0).to(tl.float32)
    gated = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) * gate * tl.sigmoid(gate)
    inverse = 1.0 / tl.sqrt(tl.sum(gated * gated, 0) / width + eps)
    scale = tl.load(weight + group * width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (gated * inverse * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    grad, y, z, weight, y_out, z_out, partial, tokens, groups, width, z_token, z_group, eps, BLOCK: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    scale = tl.load(weight + group * width + columns, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for i in range(0, tl.cdiv(tokens, tl.num_programs(0))):
        token = program + i * tl.num_programs(0)
        mask = columns < tl.where(token < tokens, width, 0)
        at = (token * groups + group) * width + columns
        upstream = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(z + token * z_token + group * z_group + columns, mask=mask, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        inverse = 1.0 / tl.sqrt(tl.sum(value * value * silu * silu, 0) / width + eps)
        normed = value * silu * inverse
        sums += upstream * normed
        upstream *= scale
        upstream = inverse * (upstream - normed * (tl.sum(upstream * normed, 0) / width))
        tl.store(y_out + at, (upstream * silu).to(y_out.dtype.element_ty), mask=mask)
        to_gate = upstream * value * sigmoid * (1 + gate * (1 - sigmoid))
        tl.store(z_out + at, to_gate.to(z_out.dtype.element_ty), mask=mask)
    tl.store(partial + (program * groups + group) * width + columns, sums, mask=inside)


def _forward(y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty_like(y)
    tokens, groups, width = y.shape
    block = triton.next_power_of_2(width)
    if tokens:
        _forward_kernel[(tokens, groups)](
            y, z, weight, out, groups, width, z.stride(0), z.stride(1), eps, BLOCK=block, num_warps=warps(block)
        )
    return out


def _backward(
    grad: torch.Tensor, y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    to_y, to_z = torch.empty_like(y), torch.empty_like(y)
    tokens, groups, width = y.shape
    block = triton.next_power_of_2(width)
    count = programs(y, tokens)
    partial = torch.empty(count, groups * width, dtype=torch.float32, device=y.device)
    if count:
        _backward_kernel[(count, groups)](
            grad, y, z, weight, to_y, to_z, partial, tokens, groups, width, z.stride(0), z.stride(1), eps,
            BLOCK=block, num_warps=warps(block),
        )  # fmt: skip
    return to_y, to_z, partial.sum(0).to(weight.dtype)


def _backward_fake(
    grad: torch.Tensor, y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(y), torch.empty_like(y), torch.empty_like(weight)


forward = operator(
    "gated_norm(Tensor y, Tensor z, Tensor weight, float eps) -> Tensor",
    _forward,
    lambda y, z, weight, eps: torch.empty_like(y),
)
backward = operator(
    "gated_norm_backward(Tensor grad, Tensor y, Tensor z, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def gated_norm(y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of y * silu(z) over the last dimension, times `weight` (G * width,); `y`, `z` and the result (T, G, width)."""
    return _GatedNorm.apply(y, z, weight, eps)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        y, z = y.contiguous(), z if z.stride(2) == 1 else z.contiguous()
        ctx.save_for_backward(y, z, weight)
        ctx.eps = eps
        return forward(y, z, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return *backward(grad.contiguous(), *ctx.saved_tensors, ctx.eps), None


def example(device: torch.device) -> None:
    """One forward and backward pass."""
    y, z = (torch.ones(3, 2, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    gated_norm(y, z, torch.ones(128, device=device, requires_grad=True), 1e-6).sum().backward()
