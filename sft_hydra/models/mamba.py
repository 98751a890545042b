"""The Mamba-2 mixer (Dao & Gu 2024) on packed sequences.

Rows of `in_proj` and channels of `conv1d` are ordered by group, [z, x, B, C, dt] of the first group, then of the second, so
an even split of rows is a split of groups. Hugging Face's files have all z, then all x, and so on;
models/state_dict_map.py converts between both orders.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.kernels.norm import gated_norm
from sft_hydra.kernels.ssd import causal_conv_silu, ssd
from sft_hydra.models.layers import Linear, Packed
from sft_hydra.parallel.collectives import gather_tokens, heads_to_tokens, sum_to_tokens, tokens_to_heads
from sft_hydra.parallel.dtensor import local_tensor
from sft_hydra.parallel.mesh import Group
from sft_hydra.parallel.sharded_module import KeepFp32, ShardedModule


class StateSpace(KeepFp32):
    """Per-head parameters of the scan, in fp32: dt_bias, A_log and D (heads,)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.D = nn.Parameter(torch.empty(num_heads))

    def forward(
        self, dt: torch.Tensor, limit: tuple[float, float], ranks: Group
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Time steps (T, H), decay rates A (H,) and skips D (H,), fp32, of this rank's heads among `ranks`; `dt` (T, H)."""
        dt_bias, A_log, D = (
            local_tensor(p).chunk(ranks.size)[ranks.rank].float() for p in (self.dt_bias, self.A_log, self.D)
        )
        return F.softplus(dt.float() + dt_bias).clamp(*limit), -torch.exp(A_log), D.clone()


class GroupNorm(nn.Module):
    """Gated RMSNorm: y * silu(z), normalized within each group of heads, in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """`y` and `z` (T, G, size / G) -> (T, size) of y's dtype."""
        return gated_norm(y, z, local_tensor(self.weight), self.eps)


class Mamba(ShardedModule):
    """(T, hidden) -> (T, hidden). A_log, dt_bias and D are used in fp32 under every precision.

    Tensor parallelism splits the groups. Context parallelism exchanges tokens for groups (all-to-all) between the input
    projection and the norm; with more ranks than groups, groups are split by heads, with copies of B and C.
    """

    columns = ("in_proj", "conv1d", "ssm", "norm")
    rows = ("out_proj",)
    opaque = ("_scan",)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        num_groups: int,
        state_size: int,
        conv_kernel: int,
        *,
        norm_eps: float,
        chunk: int,
        dt_limit: tuple[float, float],
        bias: bool,
        conv_bias: bool,
    ) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_groups, self.head_dim, self.chunk, self.dt_limit = num_groups, head_dim, chunk, dt_limit
        heads = num_heads // num_groups
        self.mixed = [heads * head_dim, state_size, state_size]  # x, B, C of one group
        self.parts = [heads * head_dim, sum(self.mixed), heads]  # z; x, B, C; dt
        channels = inner + 2 * num_groups * state_size
        self.in_proj = Linear(hidden_size, inner + channels + num_heads, bias=bias)
        self.conv1d = nn.Conv1d(channels, channels, conv_kernel, groups=channels, bias=conv_bias)
        self.ssm = StateSpace(num_heads)
        self.norm = GroupNorm(inner, norm_eps)
        self.out_proj = Linear(inner, hidden_size, bias=bias)

    def forward(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        cp = self.mesh.cp
        groups = self.num_groups // self.mesh.tp.size
        copies = cp.size // math.gcd(cp.size, groups)  # copies of each group's B and C, each with a part of its heads
        x = gather_tokens(x, self.mesh.tp)
        z, mixed, dt = self.in_proj(x).unflatten(-1, (groups, -1)).split(self.parts, dim=-1)
        mixed = tokens_to_heads(self._divided(mixed, copies), cp)
        dt = tokens_to_heads(dt.unflatten(-1, (copies, -1)).flatten(1, 2), cp)
        values, b, c = self._convolved(mixed, groups, copies, packed).split(self._sizes(copies), dim=-1)
        values = values.unflatten(-1, (-1, self.head_dim)).flatten(1, 2)
        steps, decay, skip = self.ssm(dt.flatten(1), self.dt_limit, cp)
        y = self._scan(values, steps, decay, b, c, skip, packed)
        y = heads_to_tokens(y.flatten(1).unflatten(-1, (mixed.shape[1], -1)), cp)
        y = self.norm(y.flatten(1).view(z.shape), z)
        return sum_to_tokens(self.out_proj(y), self.mesh.tp)

    def _scan(
        self,
        values: torch.Tensor,
        steps: torch.Tensor,
        decay: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        skip: torch.Tensor,
        packed: Packed,
    ) -> torch.Tensor:
        if packed.cache is not None:
            return packed.cache.scan(self, values, steps, decay, b, c, skip, packed.seq_idx, self.chunk)
        return ssd(values, steps, decay, b, c, skip, packed.seq_idx, self.chunk)

    def _convolved(self, mixed: torch.Tensor, groups: int, copies: int, packed: Packed) -> torch.Tensor:
        """Output (T, G, channels) of the convolution over this rank's groups."""
        weight, bias = local_tensor(self.conv1d.weight)[:, 0].to(mixed.dtype), self.conv1d.bias
        weight = self._local_channels(weight, groups, copies)
        bias = None if bias is None else self._local_channels(local_tensor(bias).to(mixed.dtype), groups, copies)
        if packed.cache is not None:
            return packed.cache.convolve(self, mixed.flatten(1), weight, bias, packed.seq_idx).view(mixed.shape)
        return causal_conv_silu(mixed.flatten(1), weight, bias, packed.seq_idx).view(mixed.shape)

    def _local_channels(self, channels: torch.Tensor, groups: int, copies: int) -> torch.Tensor:
        """Rows of this context-parallel rank's groups from a parameter with a row per channel."""
        divided = self._divided(channels.unflatten(0, (groups, -1))[None], copies)[0]
        return divided.chunk(self.mesh.cp.size)[self.mesh.cp.rank].flatten(0, 1)

    def _divided(self, mixed: torch.Tensor, copies: int) -> torch.Tensor:
        """(T, G, channels, ...) -> (T, G * copies, ...): the heads of a group are split, B and C are copied."""
        if copies == 1:
            return mixed
        values, b, c = mixed.split(self.mixed, 2)
        states = (x.unsqueeze(2).expand(*x.shape[:2], copies, *x.shape[2:]) for x in (b, c))
        return torch.cat([values.unflatten(2, (copies, -1)), *states], 3).flatten(1, 2)

    def _sizes(self, copies: int) -> list[int]:
        return [self.mixed[0] // copies, *self.mixed[1:]]
