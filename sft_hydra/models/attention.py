"""Grouped-query attention on packed tokens, with the options of the families: biases, norms on q and k, a window."""

import torch
from torch import nn

from sft_hydra.kernels.attention import attend
from sft_hydra.models.layers import Linear, Packed, RMSNorm
from sft_hydra.models.rotary import rotate


class Attention(nn.Module):
    """(T, hidden) -> (T, hidden). Positions come in only through `packed.rotary`."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm_eps: float | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.window = window
        self.q_proj = Linear(hidden_size, num_heads * head_dim, bias=qkv_bias)
        self.k_proj = Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias=out_bias)
        self.q_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.k_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None

    def forward(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if packed.rotary is not None:
            q, k = rotate(q, packed.rotary), rotate(k, packed.rotary)
        out = attend(
            q.to(v.dtype), k.to(v.dtype), v, packed.cu_seqlens, packed.max_seqlen, self.head_dim**-0.5, self.window
        )
        return self.o_proj(out.flatten(1))
