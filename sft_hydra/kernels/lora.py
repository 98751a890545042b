"""A linear layer with a low-rank adapter as one operation: the adapter's product is added into the base's output, and its
scale is a factor of the product, so neither costs a pass over the output."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from sft_hydra.kernels.custom_operator import operator


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    dropped: torch.Tensor | None = None,
) -> torch.Tensor:
    """x @ weight.T + bias + scale * (x @ a.T) @ b.T, (..., out).

    `x` (..., in), `weight` (out, in), `bias` (out,), `a` (dim, in), `b` (out, dim), all of one dtype; `dropped` like `x`: what
    the adapter takes in place of it.
    """
    # torch.compile adds and scales in its own kernels; autocast, of model=hf, casts what F.linear takes
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        inner = F.linear(x if dropped is None else dropped, a) * scale
        return F.linear(x, weight, bias) + F.linear(inner, b)
    rows = x.flatten(0, -2)  # model=hf has a batch dimension
    taken = None if dropped is None else dropped.flatten(0, -2)
    out: torch.Tensor = _LoraLinear.apply(rows, weight, bias, a, b, scale, taken)
    return out.unflatten(0, x.shape[:-1])


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    dropped: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    inner = F.linear(x if dropped is None else dropped, a)
    return F.linear(x, weight, bias).addmm_(inner, b.T, alpha=scale), inner


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    dropped: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(len(x), len(weight)), x.new_empty(len(x), len(a))


forward = operator(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scale, Tensor? dropped) -> (Tensor, Tensor)",
    _run,
    _fake,
)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        dropped: torch.Tensor | None,
    ) -> torch.Tensor:
        out, inner = forward(x, weight, bias, a, b, scale, dropped)
        ctx.scale, ctx.shares = scale, dropped is None
        needs_weight = ctx.needs_input_grad[1]
        ctx.save_for_backward(x if needs_weight else None, weight, a, b, inner, x if dropped is None else dropped)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight, a, b, inner, taken = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_a, needs_b, _, needs_dropped = ctx.needs_input_grad
        inner_grad = (
            grad @ b
        )  # (T, dim), before the scale, which is a factor of the products below; beta=0: of nothing else
        to_x = grad @ weight if needs_x else None
        if to_x is not None and ctx.shares:
            to_x.addmm_(inner_grad, a, alpha=ctx.scale)
        scaled = partial(torch.addmm, beta=0, alpha=ctx.scale)
        return (
            to_x,
            grad.T @ x if needs_weight else None,
            grad.sum(0) if needs_bias else None,
            scaled(a, inner_grad.T, taken) if needs_a else None,
            scaled(b, grad.T, inner) if needs_b else None,
            None,
            scaled(taken, inner_grad, a) if needs_dropped else None,
        )
