"""What layers remember of the texts of a batch while they are continued: keys and values, inputs of convolutions, states of
scans.

A first pass takes the prompts as packed documents; each further pass takes one token of every text, also as a document, in
the same order. Tokens after those of the texts are padding and leave nothing behind. Every rank keeps what its own heads and
groups need, of all tokens of its data-parallel group; nothing grows but keys and values.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.kernels.attention import attend
from sft_hydra.kernels.ssd import causal_conv_silu, ssd
from sft_hydra.kernels.ssd_state import conv_silu_step, final_states, last_inputs, ssd_step

GROWTH = 128  # tokens by which the memory of keys and values grows


class GenerationCache:
    """What is remembered of texts whose prompts have `lengths` tokens each."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.new = list(lengths)  # tokens of each text in this pass
        self.lengths = torch.zeros(len(lengths), dtype=torch.int64, device=device)  # tokens of each before it
        self.longest = 0  # of `lengths`, on the host
        texts = torch.arange(len(lengths))
        places = torch.cat([torch.arange(length) for length in lengths])
        self._prompts = (texts.repeat_interleave(torch.tensor(lengths)).to(device), places.to(device))
        self._kv: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}  # (texts, room, heads, d) each
        self._inputs: dict[nn.Module, torch.Tensor] = {}
        self._states: dict[nn.Module, torch.Tensor] = {}

    @property
    def is_first(self) -> bool:
        """Whether this is the pass of the prompts."""
        return self.longest == 0

    def advance(self) -> None:
        """The next pass begins: one token of each text."""
        self.lengths += torch.tensor(self.new, device=self.lengths.device)
        self.longest += max(self.new)
        self.new = [1] * len(self.new)

    def attend(
        self,
        layer: nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        scale: float,
        window: int | None,
        *,
        first_query: int,
    ) -> torch.Tensor:
        """`kernels.attention.attend` of the new tokens to all tokens of their texts."""
        self._remember(layer, k, v)
        if self.is_first:
            return attend(q, k, v, cu_seqlens, max_seqlen, scale, window, first_query=first_query)
        keys, values = (tensor[:, : self.longest + 1] for tensor in self._kv[layer])
        lengths = self.lengths
        if first_query or len(q) != len(lengths):  # this rank's part of the texts, or padding after them
            texts = torch.arange(first_query, first_query + len(q), device=q.device).clamp_max(len(lengths) - 1)
            keys, values, lengths = keys[texts], values[texts], lengths[texts]
        positions = torch.arange(self.longest + 1, device=q.device)
        seen = positions <= lengths[:, None]
        if window is not None:
            seen &= positions > lengths[:, None] - window
        grouped = q.unflatten(1, (k.shape[1], -1))  # the queries of a key's heads, as if they were queries of one head
        out = F.scaled_dot_product_attention(
            grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=seen[:, None, None], scale=scale
        )
        return out.flatten(1, 2)

    def convolve(
        self, layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, seq_idx: torch.Tensor
    ) -> torch.Tensor:
        """`kernels.ssd.causal_conv_silu` of the new tokens after those of their texts."""
        if self.is_first:
            self._inputs[layer] = last_inputs(x, self.new, weight.shape[1])
            return causal_conv_silu(x, weight, bias, seq_idx)
        texts = len(self.new)
        out, self._inputs[layer] = conv_silu_step(x[:texts], self._inputs[layer], weight, bias)
        return F.pad(out, (0, 0, 0, len(x) - texts))

    def scan(
        self,
        layer: nn.Module,
        x: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor,
        seq_idx: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        """`kernels.ssd.ssd` of the new tokens from the states of their texts."""
        if self.is_first:
            self._states[layer] = final_states(x, dt, A, B, self.new)
            return ssd(x, dt, A, B, C, D, seq_idx, chunk)
        n = len(self.new)
        out, self._states[layer] = ssd_step(x[:n], dt[:n], A, B[:n], C[:n], D, self._states[layer])
        return F.pad(out, (0, 0, 0, 0, 0, len(x) - n))

    def _remember(self, layer: nn.Module, k: torch.Tensor, v: torch.Tensor) -> None:
        """Add the new tokens' keys and values (t, heads, d)."""
        texts, needed = len(self.new), self.longest + max(self.new)
        if layer not in self._kv:
            room = needed + GROWTH
            self._kv[layer] = (k.new_zeros(texts, room, *k.shape[1:]), v.new_zeros(texts, room, *v.shape[1:]))
        kept = self._kv[layer]
        if kept[0].shape[1] < needed:
            kept = (F.pad(kept[0], (0, 0, 0, 0, 0, GROWTH)), F.pad(kept[1], (0, 0, 0, 0, 0, GROWTH)))
            self._kv[layer] = kept
        places = self._prompts if self.is_first else (torch.arange(texts, device=k.device), self.lengths)
        for cache, tensor in zip(kept, (k, v), strict=True):
            cache[places] = tensor[: sum(self.new)]
