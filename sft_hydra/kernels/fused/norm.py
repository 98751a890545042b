"""RMSNorm of a sum of two tensors in one kernel, and its gradient in another, in Triton.

Both add and normalize in fp32; the sum is rounded to its dtype first, as in plain torch.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from sft_hydra.kernels.custom_operator import operator, programs, warps


@triton.jit
def _forward_kernel(x, update, weight, total, out, rms, width, eps, HAS_UPDATE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row * width + columns
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        value += tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(rms + row, inverse)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (value * inverse * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    grad, grad_total, total, weight, rms, out, partial, rows, width, HAS_TOTAL: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for i in range(0, tl.cdiv(rows, tl.num_programs(0))):
        row = program + i * tl.num_programs(0)
        at = row * width + columns
        mask = columns < tl.where(row < rows, width, 0)
        inverse = tl.load(rms + tl.minimum(row, rows - 1))
        upstream = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        normed = tl.load(total + at, mask=mask, other=0.0).to(tl.float32) * inverse
        sums += upstream * normed
        upstream *= scale
        result = inverse * (upstream - normed * (tl.sum(upstream * normed, 0) / width))
        if HAS_TOTAL:
            result += tl.load(grad_total + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=mask)
    tl.store(partial + program * width + columns, sums, mask=inside)


def _forward(
    x: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total, out, rms = _forward_fake(x, update, weight, eps)
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    added = x if update is None else update
    if len(rms):
        _forward_kernel[(len(rms),)](
            x, added, weight, total, out, rms, width, eps,
            HAS_UPDATE=update is not None, BLOCK=block, num_warps=warps(block),
        )  # fmt: skip
    return total, out, rms


def _forward_fake(
    x: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = torch.empty_like(x) if update is not None else x.new_empty(0)
    return total, torch.empty_like(x), x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


def _backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor,
    rms: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(total)
    width = total.shape[-1]
    block = triton.next_power_of_2(width)
    count = programs(total, len(rms))
    partial = rms.new_empty(count, width)
    added = grad if grad_total is None else grad_total
    if count:
        _backward_kernel[(count,)](
            grad, added, total, weight, rms, out, partial, len(rms), width,
            HAS_TOTAL=grad_total is not None, BLOCK=block, num_warps=warps(block),
        )  # fmt: skip
    return out, partial.sum(0).to(weight.dtype)


def _backward_fake(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor,
    rms: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(total), torch.empty_like(weight)


forward = operator(
    "add_rms_norm(Tensor x, Tensor? update, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
backward = operator(
    "add_rms_norm_backward(Tensor grad, Tensor? grad_total, Tensor total, Tensor weight, Tensor rms) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def add_rms_norm(
    x: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + update (x if there is none), and its RMSNorm; both of the shape and dtype of `x` (..., width)."""
    total, normed = _AddNorm.apply(x, update, weight, eps)
    return total, normed


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        x = x.contiguous()
        update = None if update is None else update.contiguous()
        total, normed, rms = forward(x, update, weight, eps)
        total = x.view_as(x) if update is None else total
        ctx.save_for_backward(total, weight, rms)
        ctx.has_update = update is not None
        return total, normed

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor | None, grad: torch.Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return grad_total, grad_total if ctx.has_update else None, None, None
        upstream = None if grad_total is None else grad_total.contiguous()
        result, weights = backward(grad.contiguous(), upstream, *ctx.saved_tensors)
        return result, result if ctx.has_update else None, weights, None


def example(device: torch.device) -> None:
    """One forward and backward pass."""
    x, update = (torch.ones(5, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    total, normed = add_rms_norm(x, update, torch.ones(64, device=device, requires_grad=True), 1e-6)
    (total + normed).sum().backward()
