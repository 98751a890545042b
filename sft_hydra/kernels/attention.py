"""Causal attention over packed tokens: every document attends to itself alone.

Owns the isolation of documents in attention. Both ways compute the same function of (q, k, v, cu_seqlens):
on CUDA in 16 bits a variable-length flash kernel, everywhere else scaled_dot_product_attention.
"""

from importlib.util import find_spec
from inspect import signature

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

HAS_FLASH_ATTN = find_spec("flash_attn") is not None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Attention output (T, H, d) of q (T, H, d) and k, v (T, K, d), where K divides H.

    `cu_seqlens` (documents + 1,) int32 are the borders of documents, `max_seqlen` is the longest of them. With a
    `window`, a token sees itself and the `window - 1` tokens before it.
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return _attend_flash(q, k, v, cu_seqlens, max_seqlen, scale, window)
    return _attend_padded(q, k, v, cu_seqlens, scale, window)


def _attend_flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    left = -1 if window is None else window - 1
    if HAS_FLASH_ATTN:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen,
            softmax_scale=scale, causal=True, window_size=(left, 0),
        )  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 takes grouped heads as they are, later releases want to be told
    grouped = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
    return varlen_attn(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scale, window_size=(left, 0), **grouped
    )  # fmt: skip


def _attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """Documents of similar length, padded on the right, are one batch: under a causal mask no token sees the padding."""
    lengths = cu_seqlens.diff().tolist()
    documents = [x.split(lengths) for x in (q, k, v)]
    outputs: list[torch.Tensor] = [q] * len(lengths)
    for bucket in _buckets(lengths):
        longest = lengths[bucket[0]]
        batch = [pad_sequence([parts[i] for i in bucket], batch_first=True).transpose(1, 2) for parts in documents]
        mask = None
        if window is not None and window < longest:
            mask = torch.ones(longest, longest, dtype=torch.bool, device=q.device).tril().triu(1 - window)
        out = F.scaled_dot_product_attention(
            *batch, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        for i, document in zip(bucket, out.transpose(1, 2).unbind(0), strict=True):
            outputs[i] = document[: lengths[i]]
    return torch.cat(outputs)


def _buckets(lengths: list[int]) -> list[list[int]]:
    """Indices of documents, longest first, cut where padding would cost more than another call (empty ones left out)."""
    buckets: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not buckets or longest - lengths[i] > max(32, longest // 8):
            buckets.append([])
            longest = lengths[i]
        buckets[-1].append(i)
    return buckets
