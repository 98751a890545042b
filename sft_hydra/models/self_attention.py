"""Grouped-query attention on packed sequences, with the options of the families: biases, q/k norms, a sliding window.

Tensor parallelism splits the heads. Context parallelism exchanges tokens for heads by all-to-all (DeepSpeed-Ulysses, Jacobs
et al. 2023), so that each rank attends over full sequences with few heads; with more ranks than heads, the remaining ranks
all-gather keys and values.
"""

import torch

from sft_hydra.kernels.attention import attend
from sft_hydra.kernels.rotary import norm_rotate
from sft_hydra.models.layers import Linear, Packed, RMSNorm
from sft_hydra.parallel.collectives import gather_tokens, heads_to_tokens, sum_to_tokens, tokens_to_heads
from sft_hydra.parallel.dtensor import local_tensor
from sft_hydra.parallel.mesh import Mesh
from sft_hydra.parallel.sharded_module import ShardedModule


class Attention(ShardedModule):
    """(T, hidden) -> (T, hidden). Positions enter only through `packed.rotary`."""

    columns: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    rows = ("o_proj",)
    opaque = ("_attend_row",)

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
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.window = window
        self.q_proj = Linear(hidden_size, num_heads * head_dim, bias=qkv_bias)
        self.k_proj = Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias=out_bias)
        self.q_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.k_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None

    def join(self, mesh: Mesh) -> None:
        """Set the mesh. If tp does not divide the key-value heads, they are replicated and each rank uses those of its
        query heads."""
        super().join(mesh)
        if self.num_kv_heads % mesh.tp.size:
            self.columns = ("q_proj",)

    def forward(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        x = gather_tokens(x, self.mesh.tp)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _positioned(q, self.q_norm, packed), _positioned(k, self.k_norm, packed)
        k, v = self._kv_heads_of_queries(k), self._kv_heads_of_queries(v)
        out = self._attend_row(q.to(v.dtype), k.to(v.dtype), v, packed)
        return sum_to_tokens(self.o_proj(out.flatten(1)), self.mesh.tp)

    def _kv_heads_of_queries(self, x: torch.Tensor) -> torch.Tensor:
        """The key-value heads (T, heads, d) that this rank's query heads attend to."""
        if "k_proj" in self.columns:
            return x
        share = self.num_heads // self.mesh.tp.size
        first, queries = self.mesh.tp.rank * share, self.num_heads // self.num_kv_heads
        return x[:, first // queries : -(-(first + share) // queries)]

    def _attend_row(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Attention over the full sequence, (t, heads, d), for the local tokens and heads."""
        swap, others = self.mesh.cp_heads, self.mesh.cp_rows
        if k.shape[1] % swap.size:  # repeat to one per rank, or one per query head
            copies = swap.size // k.shape[1] if swap.size % k.shape[1] == 0 else q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(copies, dim=1), v.repeat_interleave(copies, dim=1)
        q, k, v = (tokens_to_heads(x, swap) for x in (q, k, v))
        first = others.rank * len(q)
        k, v = gather_tokens(k, others), gather_tokens(v, others)
        texts = (packed.cu_seqlens, packed.max_seqlen, self.head_dim**-0.5, self.window)
        if packed.cache is not None:
            out = packed.cache.attend(self, q, k, v, *texts, first_query=first)
        else:
            out = attend(q, k, v, *texts, first_query=first)
        return heads_to_tokens(out, swap)


def _positioned(x: torch.Tensor, norm: RMSNorm | None, packed: Packed) -> torch.Tensor:
    """Queries or keys (T, heads, d), normalized if the family does so, and rotated by their position."""
    weight, eps = (None, 0.0) if norm is None else (local_tensor(norm.weight), norm.eps)
    return norm_rotate(x, weight, eps, packed.rotary)
