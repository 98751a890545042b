"""DoRA (Liu et al. 2024) on linear layers: y = m * (W x + scale * B (A x)) / |W + scale * B A|, a norm for each output.

The norm has no gradient, as in section 4.3 of the paper and in the peft library. It is computed in fp32 from the weights that
are multiplied with, and so is the product with it; the magnitudes m are fp32 under every precision.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.models.lora_layers import LoraLinear
from sft_hydra.parallel.dtensor import copy_shard_, full_tensor, local_tensor, sum_over_split_inputs
from sft_hydra.parallel.sharded_module import KeepFp32
from sft_hydra.schema.config import LoraConfig

ROWS = 1024  # outputs whose adapted weight exists at the same time


class Magnitude(KeepFp32):
    """The trained norm of each output, `weight` (out,)."""

    def __init__(self, outputs: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, dtype=torch.float32, device=device))

    def forward(self, norms: torch.Tensor) -> torch.Tensor:
        """Factor (out,) on the outputs of this rank, whose adapted weights have `norms` (out,)."""
        return local_tensor(self.weight) / norms


class DoraLinear(LoraLinear):
    """A linear layer with an adapter whose adapted weight has rows of trained length."""

    def __init__(self, base: nn.Linear, lora: LoraConfig) -> None:
        super().__init__(base, lora)
        self.lora_magnitude_vector = Magnitude(base.out_features, base.weight.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factor = self.lora_magnitude_vector(self._norms())
        weight, bias = local_tensor(self.weight).to(x.dtype), self.local_bias(x.dtype)
        whole = F.linear(x, weight)
        if (
            self.dropout_first and self.dropout and self.training
        ):  # as in peft: what is dropped are inputs of the change
            dropped = F.dropout(x, self.dropout)
            out = whole + (factor - 1) * F.linear(dropped, weight) + factor * self._low_rank(dropped)
        else:
            out = factor * (whole + F.dropout(self._low_rank(x), self.dropout, self.training))
        return out.to(whole.dtype) if bias is None else out.to(whole.dtype) + bias

    def _low_rank(self, x: torch.Tensor) -> torch.Tensor:
        """scale * B (A x), (T, out)."""
        inner = F.linear(x, local_tensor(self.lora_A).to(x.dtype))
        return F.linear(inner, local_tensor(self.lora_B).to(x.dtype)) * self.scale

    @torch.no_grad()
    def _norms(self) -> torch.Tensor:
        """Norms (out,), at least fp32, of this rank's rows of the adapted weight."""
        weight, a, b = (local_tensor(p) for p in (self.weight, self.lora_A, self.lora_B))
        with torch.autocast(weight.device.type, enabled=False):
            squares = squared_norms(weight, a, b, self.scale)
        return safe_root(sum_over_split_inputs(squares, self.weight))

    @torch.no_grad()
    def init_magnitude(self) -> None:
        """Set the magnitudes to the norms of the adapted weight's rows. A collective over the ranks that share the layer."""
        weight, a, b = (full_tensor(p) for p in (self.weight, self.lora_A, self.lora_B))
        copy_shard_(self.lora_magnitude_vector.weight, squared_norms(weight, a, b, self.scale).sqrt())


@torch.library.custom_op("sft_hydra::squared_norms", mutates_args=())
def squared_norms(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """Squared norms (out,), at least fp32, of the rows of weight (out, in) + scale * b (out, dim) @ a (dim, in).

    One operation, so that selective activation checkpointing does not keep the adapted weight.
    """
    dtype = torch.promote_types(a.dtype, torch.float32)
    a = a.to(dtype)
    parts = zip(weight.split(ROWS), b.split(ROWS), strict=True)
    return torch.cat([torch.addmm(w.to(dtype), v.to(dtype), a, alpha=scale).square().sum(1) for w, v in parts])


@squared_norms.register_fake
def _(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    return a.new_empty(weight.shape[0], dtype=torch.promote_types(a.dtype, torch.float32))


def merged_dora(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, magnitude: torch.Tensor
) -> torch.Tensor:
    """The adapted weight (out, in) as a new tensor of the weight's dtype; computed in fp32."""
    adapted = weight.float() + scale * (b @ a)
    factor = magnitude / safe_root(adapted.square().sum(1))
    return (factor[:, None] * adapted).to(weight.dtype)


def safe_root(squares: torch.Tensor) -> torch.Tensor:
    """The square root, of zero the smallest number: rows of zeros, whose magnitude is zero, stay zeros."""
    return squares.sqrt().clamp_min(torch.finfo(squares.dtype).tiny)
