"""Causal attention over packed tokens with what fused kernels lack: scores drawn to within a cap, and sinks.

Written out, one document after the other: memory grows with the square of a document's length.
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
    """As kernels/attention.py's `attend`, (T, H, d) of q (T, H, d) and k, v (T, K, d).

    Scores are capped softly at `cap`. `sinks` (H,) are scores of a token that everyone sees and that gives nothing.
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
    """One document: (H, L, d) each."""
    length = q.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    scores = softcapped((q @ k.transpose(1, 2)) * scale, cap).masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores).view(-1, 1, 1).expand(-1, length, 1)], dim=-1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32)[..., :length]
    return weights.to(v.dtype) @ v
