"""RMSNorm of every head, then rotary position embedding, in one kernel, and the gradient in another, in Triton."""

from typing import Any

import torch
import triton
import triton.language as tl

from sft_hydra.kernels.custom_operator import operator, programs

ROWS = 16  # heads of a token, or of several, that a program holds at a time


@triton.jit
def _forward_kernel(
    x, weight, cos, sin, out, rows, heads, stride, half, eps,
    HAS_NORM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    token = row // heads
    mask = (row < rows)[:, None] & (columns < half)[None, :]
    source = x + (token * stride + (row % heads) * 2 * half)[:, None] + columns[None, :]
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        inverse = (1.0 / tl.sqrt(square / (2 * half) + eps))[:, None]
        first *= inverse * tl.load(weight + columns, mask=columns < half, other=0.0).to(tl.float32)[None, :]
        second *= inverse * tl.load(weight + half + columns, mask=columns < half, other=0.0).to(tl.float32)[None, :]
    angle = (token * 2 * half)[:, None] + columns[None, :]
    c = tl.load(cos + angle, mask=mask, other=0.0)
    s = tl.load(sin + angle, mask=mask, other=0.0)
    target = out + (row * 2 * half)[:, None] + columns[None, :]
    tl.store(target, (first * c - second * s).to(out.dtype.element_ty), mask=mask)
    tl.store(target + half, (second * c + first * s).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    grad, x, weight, cos, sin, out, partial, rows, heads, stride, half, eps,
    HAS_NORM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < half
    first_sums = tl.zeros([BLOCK], tl.float32)
    second_sums = tl.zeros([BLOCK], tl.float32)
    for i in range(0, tl.cdiv(rows, ROWS * tl.num_programs(0))):
        row = (program + i * tl.num_programs(0)) * ROWS + tl.arange(0, ROWS)
        token = row // heads
        mask = (row < rows)[:, None] & inside[None, :]
        at = (row * 2 * half)[:, None] + columns[None, :]
        angle = (token * 2 * half)[:, None] + columns[None, :]
        c = tl.load(cos + angle, mask=mask, other=0.0)
        s = tl.load(sin + angle, mask=mask, other=0.0)
        up_first = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        up_second = tl.load(grad + at + half, mask=mask, other=0.0).to(tl.float32)
        first = up_first * c + up_second * s
        second = up_second * c - up_first * s
        if HAS_NORM:
            source = x + (token * stride + (row % heads) * 2 * half)[:, None] + columns[None, :]
            x_first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
            x_second = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)
            square = tl.sum(x_first * x_first, 1) + tl.sum(x_second * x_second, 1)
            inverse = (1.0 / tl.sqrt(square / (2 * half) + eps))[:, None]
            x_first *= inverse
            x_second *= inverse
            first_sums += tl.sum(first * x_first, 0)
            second_sums += tl.sum(second * x_second, 0)
            first *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
            second *= tl.load(weight + half + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
            mean = ((tl.sum(first * x_first, 1) + tl.sum(second * x_second, 1)) / (2 * half))[:, None]
            first = inverse * (first - x_first * mean)
            second = inverse * (second - x_second * mean)
        tl.store(out + at, first.to(out.dtype.element_ty), mask=mask)
        tl.store(out + at + half, second.to(out.dtype.element_ty), mask=mask)
    if HAS_NORM:
        tl.store(partial + program * 2 * half + columns, first_sums, mask=inside)
        tl.store(partial + program * 2 * half + half + columns, second_sums, mask=inside)


def _forward(
    x: torch.Tensor, weight: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, eps: float
) -> torch.Tensor:
    out = _forward_fake(x, weight, cos, sin, eps)
    tokens, heads, size = x.shape
    rows = tokens * heads
    if rows:
        _forward_kernel[(triton.cdiv(rows, ROWS),)](
            x, cos if weight is None else weight, cos, sin, out, rows, heads, x.stride(0), size // 2, eps,
            HAS_NORM=weight is not None, BLOCK=triton.next_power_of_2(size // 2), ROWS=ROWS,
        )  # fmt: skip
    return out


def _forward_fake(
    x: torch.Tensor, weight: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, eps: float
) -> torch.Tensor:
    return x.new_empty(x.shape)


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(grad)
    tokens, heads, size = grad.shape
    rows = tokens * heads
    count = programs(grad, triton.cdiv(rows, ROWS))
    partial = cos.new_empty(0 if weight is None else count, size)
    if count:
        _backward_kernel[(count,)](
            grad, x, cos if weight is None else weight, cos, sin, out, partial,
            rows, heads, x.stride(0), size // 2, eps,
            HAS_NORM=weight is not None, BLOCK=triton.next_power_of_2(size // 2), ROWS=ROWS,
        )  # fmt: skip
    return out, cos.new_empty(0) if weight is None else partial.sum(0).to(weight.dtype)


def _backward_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(grad), cos.new_empty(0) if weight is None else torch.empty_like(weight)


forward = operator(
    "norm_rotate(Tensor x, Tensor? weight, Tensor cos, Tensor sin, float eps) -> Tensor", _forward, _forward_fake
)
backward = operator(
    "norm_rotate_backward(Tensor grad, Tensor x, Tensor? weight, Tensor cos, Tensor sin, float eps) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def norm_rotate(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, rotary: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """x (T, heads, head_dim): RMSNorm of each head with `weight` (head_dim,), if there is one, then rotated by `rotary`, cos
    and sin (T, 1, head_dim) fp32 of angles that repeat after head_dim / 2."""
    return _NormRotate.apply(x, weight, eps, *rotary)


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, eps: float, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        if x.stride()[1:] != (x.shape[2], 1):
            x = x.contiguous()
        ctx.eps, ctx.has_norm = eps, weight is not None
        if weight is None:  # the gradient does not depend on x
            ctx.save_for_backward(cos, sin)
        else:
            ctx.save_for_backward(cos, sin, x, weight)
        return forward(x, weight, cos, sin, eps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        grad = grad.contiguous()
        cos, sin, *of_norm = ctx.saved_tensors
        x, weight = of_norm or (grad, None)
        result, weights = backward(grad, x, weight, cos, sin, ctx.eps)
        return result, weights if ctx.has_norm else None, None, None, None


def example(device: torch.device) -> None:
    """One forward and backward pass."""
    x = torch.ones(3, 4, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    table = torch.ones(3, 1, 64, device=device)
    norm_rotate(x, torch.ones(64, device=device, requires_grad=True), 1e-6, (table, table)).sum().backward()
