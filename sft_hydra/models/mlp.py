"""The feed-forward layer: gated (Llama, Qwen) or plain (Nemotron-H)."""

import torch
from torch import nn

from sft_hydra.models.layers import Linear, activation


class MLP(nn.Module):
    """(T, hidden) -> (T, hidden)."""

    def __init__(self, hidden_size: int, inner_size: int, act: str, *, gated: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.act = activation(act)
        self.gate_proj = Linear(hidden_size, inner_size, bias=bias) if gated else None
        self.up_proj = Linear(hidden_size, inner_size, bias=bias)
        self.down_proj = Linear(inner_size, hidden_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act(self.up_proj(x)))
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
