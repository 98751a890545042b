"""The layers that LoRA puts in place of linear ones: y = W x + scale * B (A x), with W shared with the layer before."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.kernels.grouped import grouped_linear
from sft_hydra.models.layers import Linear
from sft_hydra.models.moe import GroupedLinear
from sft_hydra.parallel.dtensor import local_tensor
from sft_hydra.schema.config import LoraConfig

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of rows and a matrix, or one matrix per expert


def scale_of(lora: LoraConfig) -> float:
    """What the product of an adapter's matrices is multiplied with."""
    return lora.alpha / (math.sqrt(lora.dim) if lora.rank_stabilized else lora.dim)


class Adapter(nn.Module):
    """lora_A ([experts,] dim, in) and lora_B ([experts,] out, dim), both fp32, without values yet."""

    def add_factors(self, weight: torch.Tensor, lora: LoraConfig) -> None:
        """For a `weight` ([experts,] out, in)."""
        *experts, outputs, inputs = weight.shape
        self.lora_A = nn.Parameter(torch.empty(*experts, lora.dim, inputs, dtype=torch.float32, device=weight.device))
        self.lora_B = nn.Parameter(torch.empty(*experts, outputs, lora.dim, dtype=torch.float32, device=weight.device))
        self.scale = scale_of(lora)
        self.a_init = lora.a_init
        self.dropout = lora.dropout
        self.dropout_first = lora.dropout_position == "pre"

    def update(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        """What the adapter adds to the layer's output."""
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout_first else x
        inner = product(dropped, local_tensor(self.lora_A).to(x.dtype))
        update = product(inner, local_tensor(self.lora_B).to(x.dtype)) * self.scale
        return update if self.dropout_first else F.dropout(update, self.dropout, self.training)


class LoraLinear(Linear, Adapter):
    """A linear layer with an adapter."""

    def __init__(self, base: nn.Linear, lora: LoraConfig) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight = base.weight
        self.bias = base.bias
        self.add_factors(base.weight, lora)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.update(x, F.linear)


class LoraGroupedLinear(GroupedLinear, Adapter):
    """A linear layer per expert, each with an adapter of its own. No expert's weight is ever put together."""

    def __init__(self, base: GroupedLinear, lora: LoraConfig) -> None:
        with torch.device("meta"):
            super().__init__(base.num_experts, base.in_features, base.out_features)
        self.weight = base.weight
        self.add_factors(base.weight, lora)

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return super().forward(x, counts) + self.update(x, lambda rows, matrix: grouped_linear(rows, matrix, counts))
