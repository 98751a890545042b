"""Compares a fused operation with plain torch in fp32, forward and backward."""

from collections.abc import Callable
from typing import Any

import torch
from support.packed import relative

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def agrees(
    work: Callable[..., Any],
    reference: Callable[..., Any],
    tensors: list[torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """`work` on `tensors`, rounded to `dtype` and on `device`, gives what `reference` gives on the same numbers in fp32:
    outputs and the gradients of all tensors, from random upstream gradients."""
    rounded = [t.clone().to(dtype) for t in tensors]
    fast = [t.to(device).clone().requires_grad_() for t in rounded]
    exact = [t.float().requires_grad_() for t in rounded]
    outs, expected = (_listed(f(*args)) for f, args in ((work, fast), (reference, exact)))
    upstream = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)).to(dtype).float() for t in expected]
    torch.autograd.backward(outs, [g.to(t) for g, t in zip(upstream, outs, strict=True)])
    torch.autograd.backward(expected, upstream)
    for mine, theirs in zip(outs, expected, strict=True):
        assert mine.dtype == dtype
        assert relative(mine.float().cpu(), theirs) < TOLERANCES[dtype]
    for mine, theirs in zip(fast, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert relative(mine.grad.float().cpu(), theirs.grad) < TOLERANCES[dtype]


def _listed(out: Any) -> list[torch.Tensor]:
    return [out] if isinstance(out, torch.Tensor) else list(out)
