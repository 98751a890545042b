"""RMSNorm, also of a sum, and with a gate: Triton kernels where they are chosen (fused_choice.py), else plain torch."""

import torch
import torch.nn.functional as F

from sft_hydra.kernels.fused_choice import is_fused


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, of x's dtype; the root mean square is computed in fp32."""
    if is_fused("rms_norm", x):
        return add_rms_norm(x, None, weight, eps)[1]
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def add_rms_norm(
    x: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + update (x itself if there is none), and its `rms_norm`. Both are used further on; fused, their gradients are summed in the
    same kernel."""
    if is_fused("rms_norm", x):
        from sft_hydra.kernels.fused import norm as triton_norm

        return triton_norm.add_rms_norm(x, update, weight, eps)
    total = x if update is None else x + update
    return total, rms_norm(total, weight, eps)


def gated_norm(y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of y * silu(z) within each group, in fp32: `y` and `z` (T, G, size / G), `weight` (size,); (T, size) of y's
    dtype."""
    if is_fused("gated_norm", y):
        from sft_hydra.kernels.fused import gated_norm as triton_gated_norm

        return triton_gated_norm.gated_norm(y, z, weight, eps).flatten(1)
    gated = y.float() * F.silu(z.float())
    gated = gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + eps)
    return (gated.flatten(1) * weight.to(y.dtype)).to(y.dtype)
