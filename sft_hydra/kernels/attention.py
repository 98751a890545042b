"""Causal attention over packed tokens: every document attends to itself alone.

Owns the isolation of documents in attention. Both ways compute the same function of (q, k, v, cu_seqlens):
on CUDA in 16 bits a variable-length flash kernel, everywhere else scaled_dot_product_attention.

Owner of: attention stops at document boundaries (`cu_seqlens`).
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from inspect import signature

import torch
import torch.nn.functional as F

HAS_FLASH_ATTN = find_spec("flash_attn") is not None
HALF = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None = None,
    *,
    first_query: int = 0,
) -> torch.Tensor:
    """Attention output (T, H, d) of q (T, H, d) and k, v (T, K, d), where K divides H.

    `cu_seqlens` (documents + 1,) int32 are the borders of documents, `max_seqlen` is the longest of them. With a
    `window`, a token sees itself and the `window - 1` tokens before it. Queries may be a part of the row's, from
    `first_query` on; the output is then theirs.
    """
    queries = keys = cu_seqlens
    if len(q) < len(k):
        queries, keys, seen = part_of_row(cu_seqlens, first_query, first_query + len(q))
        k, v = k[seen], v[seen]
    if _fuses(q, v):
        return _attend_flash(q, k, v, queries, keys, max_seqlen, scale, window)
    if queries is not keys:
        return _attend_part(q, k, v, queries, keys, scale, window)
    return _attend_padded(q, k, v, cu_seqlens, scale, window)


def _fuses(q: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether flash attention takes heads of this size."""
    size = q.shape[-1]
    return q.is_cuda and q.dtype in HALF and size == v.shape[-1] and size % 8 == 0 and size <= LARGEST_HEAD


def part_of_row(cu_seqlens: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """For queries [start, stop) of a row: their borders, the borders of the keys that they see, and where these keys lie.

    Documents end with the part: the last query of each sees the last of its keys. Documents outside are empty.
    """
    begun = int(torch.searchsorted(cu_seqlens, start, right=True)) - 1
    first = int(cu_seqlens[begun])
    return cu_seqlens.clamp(start, stop) - start, cu_seqlens.clamp(first, stop) - first, slice(first, stop)


def _attend_flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    left = -1 if window is None else window - 1
    if HAS_FLASH_ATTN:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q, k, v, queries, keys, max_seqlen, max_seqlen,
            softmax_scale=scale, causal=True, window_size=(left, 0),
        )  # fmt: skip
    return _varlen_attn()(q, k, v, queries, keys, max_seqlen, max_seqlen, scale=scale, window_size=(left, 0))


@cache
def _varlen_attn() -> Callable[..., torch.Tensor]:
    """torch's kernel. Release 2.11 takes grouped heads as they are, later ones want to be told."""
    from torch.nn.attention.varlen import varlen_attn

    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in signature(varlen_attn).parameters else varlen_attn


def _attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """Documents of similar length, padded on the right, are one batch: under a causal mask no token sees the padding."""
    lengths = cu_seqlens.diff().tolist()
    documents = [x.split(lengths) for x in (q, k, v)]
    outputs: list[torch.Tensor] = [q] * len(lengths)
    for bucket in _buckets(lengths):
        longest = lengths[bucket[0]]
        batch = [
            torch.stack([F.pad(parts[i], (0, 0, 0, 0, 0, longest - lengths[i])) for i in bucket]).transpose(1, 2)
            for parts in documents
        ]
        mask = None
        if window is not None and window < longest:
            mask = torch.ones(longest, longest, dtype=torch.bool, device=q.device).tril().triu(1 - window)
        out = F.scaled_dot_product_attention(
            *batch, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        for i, document in zip(bucket, out.transpose(1, 2).unbind(0), strict=True):
            outputs[i] = document[: lengths[i]]
    return torch.cat(outputs)


def _attend_part(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """One document after the other; its last query is at its last key."""
    q_lengths, k_lengths = queries.diff().tolist(), keys.diff().tolist()
    outputs = []
    for qs, ks, vs in zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True):
        if not len(qs):
            continue
        seen = torch.ones(len(qs), len(ks), dtype=torch.bool, device=q.device).tril(len(ks) - len(qs))
        if window is not None:
            seen = seen.triu(len(ks) - len(qs) + 1 - window)
        one = [x.transpose(0, 1)[None] for x in (qs, ks, vs)]
        out = F.scaled_dot_product_attention(*one, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out[0].transpose(0, 1))
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
