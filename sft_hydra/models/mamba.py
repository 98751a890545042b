"""The Mamba2 mixer on packed tokens.

Rows of `in_proj` and channels of `conv1d` lie group by group, [z, x, B, C, dt] of the first group, then of the second:
each group is whole by itself, so any even share of rows is a share of groups. Hugging Face's files have all z, then all
x, and so on; models/names.py knows both orders.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.kernels.ssd import causal_conv_silu, ssd
from sft_hydra.models.layers import Linear, Packed


class GroupNorm(nn.Module):
    """RMS norm of y * silu(z) within each group of heads, in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """`y` and `z` (T, G, size / G) -> (T, size) of y's dtype."""
        gated = y.float() * F.silu(z.float())
        gated = gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + self.eps)
        return (gated.flatten(1) * self.weight.float()).to(y.dtype)


class Mamba(nn.Module):
    """(T, hidden) -> (T, hidden). A_log, dt_bias and D are used in fp32 whatever the precision."""

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
        self.parts = [heads * head_dim, heads * head_dim, state_size, state_size, heads]  # z, x, B, C, dt of one group
        channels = inner + 2 * num_groups * state_size
        self.in_proj = Linear(hidden_size, inner + channels + num_heads, bias=bias)
        self.conv1d = nn.Conv1d(channels, channels, conv_kernel, groups=channels, bias=conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.D = nn.Parameter(torch.empty(num_heads))
        self.norm = GroupNorm(inner, norm_eps)
        self.out_proj = Linear(inner, hidden_size, bias=bias)

    def forward(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        z_size, x_size, b_size, c_size, dt_size = self.parts
        z, mixed, dt = (
            self.in_proj(x)
            .unflatten(-1, (self.num_groups, -1))
            .split([z_size, x_size + b_size + c_size, dt_size], dim=-1)
        )
        with torch.autocast(x.device.type, enabled=False):
            mixed = causal_conv_silu(
                mixed.flatten(1), self.conv1d.weight.float()[:, 0], self._conv_bias(), packed.seq_idx
            ).view(mixed.shape)
            values, b, c = mixed.split([x_size, b_size, c_size], dim=-1)
            steps = F.softplus(dt.flatten(1).float() + self.dt_bias.float()).clamp(*self.dt_limit)
            decay = -torch.exp(self.A_log.float())
            values = values.unflatten(-1, (-1, self.head_dim)).flatten(1, 2)
            y = ssd(values, steps, decay, b, c, self.D.float(), packed.seq_idx, self.chunk)
            y = self.norm(y.flatten(1).view(z.shape), z)
        return self.out_proj(y)

    def _conv_bias(self) -> torch.Tensor | None:
        return None if self.conv1d.bias is None else self.conv1d.bias.float()
