"""Mamba-2 one token at a time: the states that a text leaves behind, and the step from them to the next token. The same
functions as kernels/ssd.py, exact on any device, in fp32."""

import torch
import torch.nn.functional as F


def last_inputs(x: torch.Tensor, lengths: list[int], taps: int) -> torch.Tensor:
    """The last `taps - 1` inputs of each document, zeros before its start: (documents, taps - 1, C) of x (T, C), whose first
    tokens are the documents of `lengths`."""
    documents = x[: sum(lengths)].split(lengths)
    return torch.stack([F.pad(document, (0, 0, taps - 1, 0))[len(document) :] for document in documents])


def conv_silu_step(
    x: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(silu of the convolution at the new token of each document (B, C), its last inputs from now on), from x (B, C) and the
    last inputs before it (B, K - 1, C); `weight` (C, K)."""
    window = torch.cat([inputs, x[:, None]], 1)
    out = (window.float() * weight.T).sum(1)
    if bias is not None:
        out = out + bias
    return F.silu(out).to(x.dtype), window[:, 1:]


def final_states(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """States h of the scan (`ssd.ssd`) after the last token of each document: (documents, H, P, N) fp32.

    The decay of a token is a sum from the end of its document, so it is exact where it matters.
    """
    states, first = [], 0
    heads = x.shape[1] // B.shape[1]  # of each group
    for length in lengths:
        part = slice(first, first + length)
        steps = dt[part] * A  # (l, H) log decay
        after = steps.flip(0).cumsum(0).flip(0) - steps
        inputs = x[part].float() * (dt[part] * after.exp())[..., None]
        states.append(torch.einsum("lhp,lhn->hpn", inputs, B[part].float().repeat_interleave(heads, 1)))
        first += length
    return torch.stack(states)


def ssd_step(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    states: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y (documents, H, P) of x's dtype, states from now on) for one new token of each document; `states` (documents, H, P, N),
    the others as in `ssd.ssd`."""
    heads = x.shape[1] // B.shape[1]
    keys, queries = (tensor.float().repeat_interleave(heads, 1)[:, :, None] for tensor in (B, C))  # (b, H, 1, N)
    values = x.float()
    states = states * (dt * A).exp()[..., None, None] + (values * dt[..., None])[..., None] * keys
    return ((states * queries).sum(-1) + values * D[:, None]).to(x.dtype), states
