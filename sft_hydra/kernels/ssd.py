"""Mamba-2 on packed sequences: the causal convolution and the state-space scan (SSD, Dao & Gu 2024), both reset at every
document boundary.

This implementation is exact on any device; on CUDA the kernels of ssd_fused.py are used if they are installed.

Owner of: convolution and state stop at document boundaries.
"""

import torch
import torch.nn.functional as F

from sft_hydra.kernels.ssd_fused import fused_conv_silu, fused_ssd, fuses_convolution, fuses_scan


def causal_conv_silu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, seq_idx: torch.Tensor
) -> torch.Tensor:
    """silu(depthwise causal convolution) of x (T, C) over the last K tokens of the same document; (T, C) of x's dtype.

    `weight` (C, K), `bias` (C,) or None, `seq_idx` (T,) int32 the document index of each token, non-decreasing.
    """
    if fuses_convolution(x, weight):
        return fused_conv_silu(x, weight, bias, seq_idx)
    taps = weight.shape[1]
    values = x.float()
    out = values * weight[:, -1]
    for back in range(1, min(taps, len(x))):
        same = (seq_idx[back:] == seq_idx[:-back])[:, None]
        out = out + F.pad(values[:-back] * same, (0, 0, back, 0)) * weight[:, -1 - back]
    if bias is not None:
        out = out + bias
    return F.silu(out).to(x.dtype)


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    seq_idx: torch.Tensor,
    chunk: int,
) -> torch.Tensor:
    """Scan h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t + D x_t, with h = 0 at the start of a document.

    `x` (T, H, P), `dt` (T, H) positive fp32, `A` and `D` (H,), `B` and `C` (T, G, N) with G dividing H, `seq_idx` (T,).
    Returns y (T, H, P) of x's dtype. Computed in fp32 in chunks of `chunk` tokens: quadratic within a chunk, a recurrent
    state between chunks (SSD algorithm of Mamba-2).
    """
    if fuses_scan(x, chunk):
        return fused_ssd(x, dt, A, B, C, D, seq_idx, chunk)
    length, groups = len(x), B.shape[1]
    heads = x.shape[1] // groups  # per group
    values = x.float()
    steps = _chunks(dt * A, chunk).unflatten(-1, (groups, heads))  # (c, l, G, R) log decay of every token
    inputs = _chunks(values * dt[..., None], chunk).unflatten(2, (groups, heads))  # (c, l, G, R, P)
    keys, queries = _chunks(B.float(), chunk), _chunks(C.float(), chunk)  # (c, l, G, N)
    documents = F.pad(seq_idx, (0, -length % chunk), value=-1).unflatten(0, (-1, chunk))  # (c, l)

    decay = _decay(steps, documents)  # (c, G, R, l, s)
    scores = torch.einsum("clgn,csgn->cgls", queries, keys)
    y = list(torch.einsum("cgrls,csgrp->clgrp", scores[:, :, None] * decay, inputs).unbind(0))
    # contribution of a chunk to the state of the document at its end
    added = torch.einsum("csgn,cgrs,csgrp->cgrpn", keys, decay[..., -1, :], inputs)

    from_start = _running_sum(steps, 1).exp()  # (c, l, G, R), used only for the document at the start of the chunk
    state = torch.zeros_like(added[0])
    for i in range(len(documents)):
        if i:
            continues = documents[i] == documents[i - 1, -1]  # (l,) tokens of the document that the state belongs to
            reached = torch.einsum("lgn,grpn,lgr->lgrp", queries[i], state, from_start[i])
            y[i] = y[i] + reached * continues[:, None, None, None]
            state = state * (from_start[i, -1] * continues[-1])[..., None, None]
        state = state + added[i]
    scanned = torch.cat(y)[:length].flatten(1, 2)
    return (scanned + values * D[:, None]).to(x.dtype)


def _decay(steps: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """(c, G, R, l, s): decay from token s to token l; 0 across document boundaries and for s > l.

    Every sum starts at its s, so its rounding does not depend on an earlier document.
    """
    size = documents.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=steps.device).tril()
    columns = steps.permute(0, 2, 3, 1)[..., None].expand(*steps.shape[:1], *steps.shape[2:], size, size)
    sums = _running_sum(columns.masked_fill(~causal.tril(-1), 0.0), -2)
    same = causal & (documents[:, :, None] == documents[:, None, :])
    return sums.masked_fill(~same[:, None, None], -torch.inf).exp()


def _running_sum(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The cumulative sum over a dimension; as a matrix product where torch must be deterministic, since it refuses a sum of
    floating-point numbers on CUDA then."""
    if not torch.are_deterministic_algorithms_enabled():
        return x.cumsum(dim)
    size = x.shape[dim]
    return torch.tensordot(x, x.new_ones(size, size).tril(), dims=([dim], [1])).movedim(-1, dim)


def _chunks(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """(T, ...) -> (chunks, chunk, ...), zero-padded at the end."""
    fill = [0, 0] * (x.ndim - 1) + [0, -len(x) % chunk]
    return F.pad(x, fill).unflatten(0, (-1, chunk))
