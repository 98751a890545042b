"""LoRA layers that replace linear layers: y = W x + scale * B (A x), where W is the replaced layer's weight."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.kernels.grouped import grouped_linear
from sft_hydra.kernels.lora import lora_linear
from sft_hydra.models.layers import Linear
from sft_hydra.models.moe import GroupedLinear
from sft_hydra.parallel.dtensor import local_tensor
from sft_hydra.schema.config import LoraConfig

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x, A or B), also with a matrix per expert


def scale_of(lora: LoraConfig) -> float:
    """Scale on B A: alpha / dim, or alpha / sqrt(dim) with rank_stabilized (rsLoRA, Kalajdzievski 2023)."""
    return lora.alpha / (math.sqrt(lora.dim) if lora.rank_stabilized else lora.dim)


class Adapter(nn.Module):
    """Adapter matrices lora_A ([experts,] dim, in) and lora_B ([experts,] out, dim), both fp32, created uninitialized."""

    def add_factors(self, weight: torch.Tensor, lora: LoraConfig) -> None:
        """Create the matrices for a `weight` ([experts,] out, in)."""
        *experts, outputs, inputs = weight.shape
        self.lora_A = nn.Parameter(torch.empty(*experts, lora.dim, inputs, dtype=torch.float32, device=weight.device))
        self.lora_B = nn.Parameter(torch.empty(*experts, outputs, lora.dim, dtype=torch.float32, device=weight.device))
        self.scale = scale_of(lora)
        self.a_init = lora.a_init
        self.dropout = lora.dropout
        self.dropout_first = lora.dropout_position == "pre"

    def update(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        """The adapter's contribution (T, out) to the layer's output; `product(x, matrix)` is x @ matrix.T."""
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout_first else x
        inner = product(dropped, local_tensor(self.lora_A).to(x.dtype)) * self.scale
        update = product(inner, local_tensor(self.lora_B).to(x.dtype))
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
        weight, a, b = (local_tensor(p).to(x.dtype) for p in (self.weight, self.lora_A, self.lora_B))
        bias = self.local_bias(x.dtype)
        drops = self.training and self.dropout > 0
        if drops and not self.dropout_first:
            return F.linear(x, weight, bias) + self.update(x, F.linear)
        return lora_linear(x, weight, bias, a, b, self.scale, F.dropout(x, self.dropout) if drops else None)


class LoraGroupedLinear(GroupedLinear, Adapter):
    """A linear layer per expert, each with its adapter. Merged expert weights are never materialized."""

    def __init__(self, base: GroupedLinear, lora: LoraConfig) -> None:
        with torch.device("meta"):
            super().__init__(base.num_experts, base.in_features, base.out_features)
        self.weight = base.weight
        self.add_factors(base.weight, lora)

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return super().forward(x, counts) + self.update(x, lambda rows, matrix: grouped_linear(rows, matrix, counts))
