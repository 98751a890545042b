"""Linear layers whose frozen weights are kept in four or eight bits, with and without LoRA adapters (QLoRA).

Weights are dequantized where they are multiplied, in the forward and again in the backward pass, and never kept in between.
`quantize_linears` replaces the linear layers of a model on the meta device, before adapters are added.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.kernels.grouped import grouped_linear
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.layers import Linear
from sft_hydra.models.lora_layers import Adapter
from sft_hydra.models.moe import GroupedLinear
from sft_hydra.models.quantized_weight import QuantizedWeight
from sft_hydra.models.state_dict_map import disk_rows
from sft_hydra.parallel.dtensor import local_tensor
from sft_hydra.parallel.full_state_dict import full_tensors
from sft_hydra.schema.peft import LoraConfig


class _FrozenProduct(torch.autograd.Function):
    """x times a transposed quantized weight, with `counts` for experts; only x has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        packed: torch.Tensor,
        code: QuantizedWeight,
        bias: torch.Tensor | None,
        counts: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(packed, counts)
        ctx.code, ctx.dtype = code, x.dtype
        weight = code.unpack(packed, x.dtype)
        return F.linear(x, weight, bias) if counts is None else grouped_linear(x, weight, counts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:  # type: ignore[override]
        packed, counts = ctx.saved_tensors
        weight = ctx.code.unpack(packed, gradient.dtype).transpose(-1, -2)
        of_x = F.linear(gradient, weight) if counts is None else grouped_linear(gradient, weight, counts)
        return of_x.to(ctx.dtype), None, None, None, None


def _frozen_bytes(code: QuantizedWeight) -> nn.Parameter:
    return nn.Parameter(torch.empty(code.packed_shape, dtype=torch.uint8, device="meta"), requires_grad=False)


class QuantizedLinear(Linear):
    """A linear layer with a quantized weight; its bias, if it has one, is as it was."""

    def __init__(self, base: nn.Linear, code: QuantizedWeight) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight = _frozen_bytes(code)
        self.bias = base.bias
        self.code = code

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return quantized_product(self, x)


class QuantizedGroupedLinear(GroupedLinear):
    """A linear layer per expert with quantized weights."""

    def __init__(self, base: GroupedLinear, code: QuantizedWeight) -> None:
        with torch.device("meta"):
            super().__init__(base.num_experts, base.in_features, base.out_features)
        self.weight = _frozen_bytes(code)
        self.code = code

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return quantized_product(self, x, counts)


Quantized = QuantizedLinear | QuantizedGroupedLinear


class QuantizedLoraLinear(QuantizedLinear, Adapter):
    """A linear layer with a quantized weight and an adapter."""

    def __init__(self, base: QuantizedLinear, lora: LoraConfig) -> None:
        super().__init__(base, base.code)
        self.add_factors(torch.empty(base.code.shape, device="meta"), lora)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return quantized_product(self, x) + self.update(x, F.linear)


class QuantizedLoraGroupedLinear(QuantizedGroupedLinear, Adapter):
    """A linear layer per expert with quantized weights, each with its adapter."""

    def __init__(self, base: QuantizedGroupedLinear, lora: LoraConfig) -> None:
        super().__init__(base, base.code)
        self.add_factors(torch.empty(base.code.shape, device="meta"), lora)

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return quantized_product(self, x, counts) + self.update(
            x, lambda rows, matrix: grouped_linear(rows, matrix, counts)
        )


@torch.compiler.disable  # bitsandbytes' CPU kernels cannot be traced
def quantized_product(layer: Quantized, x: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
    """The layer's output without its adapter: (T, out) for x (T, in); of experts, `counts` (E,) rows each."""
    bias = None if isinstance(layer, QuantizedGroupedLinear) else layer.local_bias(x.dtype)
    product: torch.Tensor = _FrozenProduct.apply(x, local_tensor(layer.weight), layer.code, bias, counts)
    return product


def with_adapter(layer: Quantized, lora: LoraConfig) -> nn.Module:
    """The layer with an uninitialized adapter."""
    if isinstance(layer, QuantizedGroupedLinear):
        return QuantizedLoraGroupedLinear(layer, lora)
    return QuantizedLoraLinear(layer, lora)


def quantize_linears(model: DecoderModel, kind: str) -> None:
    """Keep the weights of all linear layers but the head in `kind` (nf4, int8): replace them in a model on the meta device.
    Embedding, head, norms, routers, convolutions and biases stay as they are."""
    head = model.head_weight
    for name, module in list(model.named_modules()):
        if type(module) not in (Linear, nn.Linear, GroupedLinear) or module.weight is head:
            continue
        assert isinstance(module, nn.Linear | GroupedLinear)
        weight = f"{name}.weight"
        code = QuantizedWeight(kind, module.weight.shape, module.weight.dtype, disk_rows(model.config, weight))
        model.quantized[weight] = code
        parent, _, leaf = name.rpartition(".")
        quantized = (
            QuantizedGroupedLinear(module, code) if isinstance(module, GroupedLinear) else QuantizedLinear(module, code)
        )
        model.get_submodule(parent).register_module(leaf, quantized)


def whole_tensors(model: DecoderModel, *, everywhere: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, full tensor) of the model's state as `full_tensors` gathers it, quantized weights dequantized one by one."""
    for name, tensor in full_tensors(model.state_dict(), model.mesh, everywhere=everywhere):
        code = model.quantized.get(name)
        yield name, tensor if code is None else code.unpack(tensor)
