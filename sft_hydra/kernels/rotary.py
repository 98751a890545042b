"""Rotary position embedding, after RMSNorm of each head where a family has one: a Triton kernel where it is chosen
(fused_choice.py), else plain torch."""

import torch

from sft_hydra.kernels.fused_choice import is_fused
from sft_hydra.kernels.norm import rms_norm

Rotary = tuple[torch.Tensor, torch.Tensor]  # cos and sin (T, 1, head_dim) fp32


def norm_rotate(x: torch.Tensor, weight: torch.Tensor | None, eps: float, rotary: Rotary | None) -> torch.Tensor:
    """x (T, heads, head_dim) with RMSNorm of each head (None for `weight`: without), then `rotate`d (None: not)."""
    if rotary is not None and is_fused("rotary", x):
        from sft_hydra.kernels.fused import rotary as triton_rotary

        return triton_rotary.norm_rotate(x, weight, eps, rotary)
    x = x if weight is None else rms_norm(x, weight, eps)
    return x if rotary is None else rotate(x, rotary)


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """x (T, heads, head_dim) rotated by its position; dimension i pairs with i + head_dim / 2, as in Hugging Face."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
