"""Causal attention over packed sequences: every document attends only to itself.

All implementations compute the same function of (q, k, v, cu_seqlens): on CUDA in bf16 or fp16 a variable-length
FlashAttention kernel (Dao 2023, `flash_attn_varlen_func`, or torch's `varlen_attn`), everywhere else
scaled_dot_product_attention.

Owner of: attention stops at document boundaries (`cu_seqlens`).
"""

from collections.abc import Callable
from functools import cache, partial
from inspect import signature

import torch
import torch.nn.functional as F

from sft_hydra.kernels.library_choice import FLASH_ATTN, VARLEN_ATTN, is_used

HALF = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


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
    """Attention output (T, H, d) of q (T, H, d) and k, v (T, K, d), where K divides H (grouped-query attention).

    `cu_seqlens` (documents + 1,) int32 are the document boundaries, `max_seqlen` the longest document in tokens, `scale`
    the factor on q k^T. With a `window`, a token attends to itself and the `window - 1` tokens before it. q may hold only
    the queries from `first_query` on, fewer than the keys; the output then has the shape of q.
    """
    queries = keys = cu_seqlens
    if len(q) < len(k):
        queries, keys, visible = part_of_row(cu_seqlens, first_query, first_query + len(q))
        k, v = k[visible], v[visible]
    if _fuses(q, v):
        fused = attend_flash_attn if is_used(FLASH_ATTN) else attend_varlen
        return fused(q, k, v, queries, keys, max_seqlen, scale, window)
    if queries is not keys:
        return _attend_part(q, k, v, queries, keys, scale, window)
    return _attend_padded(q, k, v, cu_seqlens, scale, window)


def _fuses(q: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether there is a FlashAttention kernel, and it supports these tensors."""
    size, there = q.shape[-1], is_used(FLASH_ATTN) or is_used(VARLEN_ATTN)
    return there and q.is_cuda and q.dtype in HALF and size == v.shape[-1] and size % 8 == 0 and size <= MAX_HEAD_DIM


def part_of_row(cu_seqlens: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """For queries [start, stop) of a packed sequence: boundaries of the queries, boundaries of the keys they attend to (both
    (documents + 1,) int32), and the slice of these keys.

    Documents are truncated at `stop`, so the last query of each is aligned with its last key. Documents outside are empty.
    """
    document = int(torch.searchsorted(cu_seqlens, start, right=True)) - 1
    first = int(cu_seqlens[document])
    return cu_seqlens.clamp(start, stop) - start, cu_seqlens.clamp(first, stop) - first, slice(first, stop)


def attend_flash_attn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """`attend` by flash-attn; boundaries of `queries` and `keys` as from `part_of_row`."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q, k, v, queries, keys, max_seqlen, max_seqlen,
        softmax_scale=scale, causal=True, window_size=_window(window),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def attend_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """`attend` by torch's FlashAttention kernel; its backward pass is deterministic with
    `torch.use_deterministic_algorithms`."""
    return _varlen_attn()(q, k, v, queries, keys, max_seqlen, max_seqlen, scale=scale, window_size=_window(window))


def _window(window: int | None) -> tuple[int, int]:
    return (-1 if window is None else window - 1, 0)


@cache
def _varlen_attn() -> Callable[..., torch.Tensor]:
    """torch's variable-length kernel. Releases after 2.11 need `enable_gqa` for grouped heads."""
    from torch.nn.attention.varlen import varlen_attn

    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in signature(varlen_attn).parameters else varlen_attn


def _attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """Documents of similar length are one right-padded batch: under a causal mask no token attends to the padding."""
    lengths = cu_seqlens.diff().tolist()
    k, v = _for_each_query_head(q, k, v)
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
    """Attention of fewer queries than keys, one document at a time; its last query is aligned with its last key."""
    k, v = _for_each_query_head(q, k, v)
    q_lengths, k_lengths = queries.diff().tolist(), keys.diff().tolist()
    outputs = []
    for qs, ks, vs in zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True):
        if not len(qs):
            continue
        mask = torch.ones(len(qs), len(ks), dtype=torch.bool, device=q.device).tril(len(ks) - len(qs))
        if window is not None:
            mask = mask.triu(len(ks) - len(qs) + 1 - window)
        one = [x.transpose(0, 1)[None] for x in (qs, ks, vs)]
        out = F.scaled_dot_product_attention(*one, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def _for_each_query_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with as many heads as the queries on CUDA: in fp32, torch's only kernel for grouped heads there makes
    all scores."""
    copies = q.shape[1] // k.shape[1]
    if copies == 1 or not q.is_cuda:
        return k, v
    return k.repeat_interleave(copies, dim=1), v.repeat_interleave(copies, dim=1)


def _buckets(lengths: list[int]) -> list[list[int]]:
    """Indices of documents, longest first, grouped so that padding costs less than another kernel call."""
    buckets: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not buckets or longest - lengths[i] > max(32, longest // 8):
            buckets.append([])
            longest = lengths[i]
        buckets[-1].append(i)
    return buckets
