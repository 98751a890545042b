"""Causal attention over packed sequences with features that fused kernels lack: soft-capped scores (Gemma 2) and attention
sinks (GPT-OSS).

Computed one document at a time with explicit scores: memory grows with the square of the document length.
"""

import torch
import torch.nn.functional as F

from sft_hydra.kernels.loss import softcapped


def attend_capped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    window: int | None = None,
    *,
    cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `kernels.attention.attend`: (T, H, d) from q (T, H, d) and k, v (T, K, d).

    Scores become cap * tanh(scores / cap). `sinks` (H,): per head the score of an extra key with a zero value.
    """
    lengths = cu_seqlens.diff().tolist()
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    queries, keys, values = (x.transpose(0, 1).split(lengths, dim=1) for x in (q, k, v))
    documents = zip(queries, keys, values, strict=True)
    return torch.cat([_one(q, k, v, scale, window, cap, sinks) for q, k, v in documents], dim=1).transpose(0, 1)


def _one(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None,
    cap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of one document, (H, L, d) from q, k, v (H, L, d)."""
    length = q.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if window is not None:
        mask = mask.triu(1 - window)
    scores = softcapped((q @ k.transpose(1, 2)) * scale, cap).masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores).view(-1, 1, 1).expand(-1, length, 1)], dim=-1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32)[..., :length]
    return weights.to(v.dtype) @ v
