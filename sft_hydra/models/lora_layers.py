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
from sft_hydra.planning.lora_targets import starts_from_weight
from sft_hydra.schema.peft import LoraConfig

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x, A or B), also with a matrix per expert


def scale_of(lora: LoraConfig) -> float:
    """Scale on B A: alpha / dim, or alpha / sqrt(dim) with rank_stabilized (rsLoRA, Kalajdzievski 2023)."""
    return lora.alpha / (math.sqrt(lora.dim) if lora.rank_stabilized else lora.dim)


def joined(
    a: torch.Tensor, b: torch.Tensor, a_start: torch.Tensor | None, b_start: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices whose product is b @ a - b_start @ a_start: what training changes of the weight, where A and B start from it."""
    if a_start is None or b_start is None:
        return a, b
    return torch.cat([a, a_start], -2), torch.cat([b, -b_start], -1)


class Adapter(nn.Module):
    """Adapter matrices lora_A ([experts,] dim, in) and lora_B ([experts,] out, dim), both fp32, created uninitialized."""

    def add_factors(self, weight: torch.Tensor, lora: LoraConfig) -> None:
        """Create the matrices for a `weight` ([experts,] out, in)."""
        *experts, outputs, inputs = weight.shape
        self.lora_A = nn.Parameter(torch.empty(*experts, lora.dim, inputs, dtype=torch.float32, device=weight.device))
        self.lora_B = nn.Parameter(torch.empty(*experts, outputs, lora.dim, dtype=torch.float32, device=weight.device))
        self.scale = scale_of(lora)
        self.a_init = "normal" if lora.init_lora_weights == "gaussian" else lora.a_init
        self.start = lora.init_lora_weights if starts_from_weight(lora) else None
        if self.start is not None:
            self.lora_A_start = nn.Parameter(torch.empty_like(self.lora_A), requires_grad=False)
            self.lora_B_start = nn.Parameter(torch.empty_like(self.lora_B), requires_grad=False)
        self.dropout = lora.dropout
        self.dropout_first = lora.dropout_position == "pre"

    def update(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        """The adapter's contribution (T, out) to the layer's output; `product(x, matrix)` is x @ matrix.T."""
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout_first else x
        update = self.low_rank(dropped, product)
        update = update if self.dropout_first else F.dropout(update, self.dropout, self.training)
        return update if self.start is None else update - self.subtracted(x, product)

    def low_rank(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        """scale * B (A x), (T, out)."""
        inner = product(x, local_tensor(self.lora_A).to(x.dtype)) * self.scale
        return product(inner, local_tensor(self.lora_B).to(x.dtype))

    def subtracted(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        """What the layer's output starts with twice, (T, out), where A and B start from the weight."""
        inner = product(x, local_tensor(self.lora_A_start).to(x.dtype)) * self.scale
        return product(inner, local_tensor(self.lora_B_start).to(x.dtype))


class LoraLinear(Linear, Adapter):
    """A linear layer with an adapter."""

    def __init__(self, base: nn.Linear, lora: LoraConfig) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight = base.weight
        self.bias = base.bias
        self.add_factors(base.weight, lora)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, a, b = (self.cast(name, x.dtype) for name in ("weight", "lora_A", "lora_B"))
        bias = self.local_bias(x.dtype)
        drops = self.training and self.dropout > 0
        if drops and not self.dropout_first:
            return F.linear(x, weight, bias) + self.update(x, F.linear)
        out = lora_linear(x, weight, bias, a, b, self.scale, F.dropout(x, self.dropout) if drops else None)
        return out if self.start is None else out - self.subtracted(x, F.linear)


class LoraGroupedLinear(GroupedLinear, Adapter):
    """A linear layer per expert, each with its adapter. Merged expert weights are never materialized."""

    def __init__(self, base: GroupedLinear, lora: LoraConfig) -> None:
        with torch.device("meta"):
            super().__init__(base.num_experts, base.in_features, base.out_features)
        self.weight = base.weight
        self.add_factors(base.weight, lora)

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return super().forward(x, counts) + self.update(x, lambda rows, matrix: grouped_linear(rows, matrix, counts))
