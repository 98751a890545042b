"""DoRA (Liu et al. 2024) on linear layers: y = m * (W x + scale * B (A x)) / |W + scale * B A|, a norm for each output.

The norm has no gradient, as in section 4.3 of the paper and in the peft library. It is computed in fp32 from the weights that
are multiplied with, and so is the product with it; the magnitudes m are fp32 under every precision.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.models.lora_layers import LoraLinear, joined
from sft_hydra.parallel.dtensor import copy_shard_, full_tensor, local_tensor, sum_over_split_inputs
from sft_hydra.parallel.sharded_module import KeepFp32
from sft_hydra.schema.peft import LoraConfig

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
        bias, whole = self.local_bias(x.dtype), self._base(x)
        if self.dropout_first and self.dropout and self.training:
            dropped = F.dropout(x, self.dropout)  # as in peft, the input of all that differs from the base
            out = whole + (factor - 1) * self._base(dropped) + factor * self.low_rank(dropped, F.linear)
        else:
            out = factor * (whole + F.dropout(self.low_rank(x, F.linear), self.dropout, self.training))
        return out.to(whole.dtype) if bias is None else out.to(whole.dtype) + bias

    def _base(self, x: torch.Tensor) -> torch.Tensor:
        """The output (T, out) of the base layer without its bias, to which the update is added."""
        whole = F.linear(x, local_tensor(self.weight).to(x.dtype))
        return whole if self.start is None else whole - self.subtracted(x, F.linear)

    @torch.no_grad()
    def _norms(self) -> torch.Tensor:
        """Norms (out,), at least fp32, of this rank's rows of the adapted weight."""
        weight = local_tensor(self.weight)
        a, b = local_tensor(self.lora_A), local_tensor(self.lora_B)
        if self.start is not None:
            a, b = joined(a, b, local_tensor(self.lora_A_start), local_tensor(self.lora_B_start))
        with torch.autocast(weight.device.type, enabled=False):
            squares = squared_norms(weight, a, b, self.scale)
        return safe_root(sum_over_split_inputs(squares, self.weight))

    @torch.no_grad()
    def init_magnitude(self) -> None:
        """Set the magnitudes to the norms of the adapted weight's rows. A collective over the ranks that share the layer."""
        weight = full_tensor(self.weight)  # A and B do not change it yet
        none = weight.new_zeros(0, dtype=self.lora_A.dtype)
        squares = squared_norms(weight, none.view(0, weight.shape[1]), none.view(len(weight), 0), self.scale)
        copy_shard_(self.lora_magnitude_vector.weight, squares.sqrt())


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
