"""The feed-forward layer: gated (Llama, Qwen) or plain (Nemotron-H)."""

import torch

from sft_hydra.kernels.activation import gated
from sft_hydra.models.layers import Linear, activation
from sft_hydra.parallel.collectives import gather_tokens, sum_to_tokens
from sft_hydra.parallel.sharded_module import ShardedModule


class MLP(ShardedModule):
    """(T, hidden) -> (T, hidden). Tensor parallelism splits the inner channels if `split`."""

    def __init__(
        self, hidden_size: int, inner_size: int, act: str, *, gated: bool = True, bias: bool = False, split: bool = True
    ) -> None:
        super().__init__()
        self.act = activation(act)
        self.gate_proj = Linear(hidden_size, inner_size, bias=bias) if gated else None
        self.up_proj = Linear(hidden_size, inner_size, bias=bias)
        self.down_proj = Linear(inner_size, hidden_size, bias=bias)
        if split:
            self.columns, self.rows = ("gate_proj", "up_proj"), ("down_proj",)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = gather_tokens(x, self.mesh.tp)
        inner = self.up_proj(x)
        inner = self.act(inner) if self.gate_proj is None else gated(self.act, self.gate_proj(x), inner)
        return sum_to_tokens(self.down_proj(inner), self.mesh.tp)
