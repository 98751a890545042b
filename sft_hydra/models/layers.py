"""Layers that all families share: linear, RMSNorm, activations; and the metadata of a packed sequence.

Precision: a layer casts its weights to the dtype of its input and returns that dtype. Weights of a `KeepFp32` layer stay
in fp32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.errors import ModelError
from sft_hydra.kernels.activation import Activation, relu2
from sft_hydra.kernels.norm import add_rms_norm, rms_norm
from sft_hydra.models.generation_cache import GenerationCache
from sft_hydra.models.weight_copies import CastWeight
from sft_hydra.parallel.dtensor import local_tensor, partial_sum_ranks


@dataclass(frozen=True, slots=True)
class Packed:
    """Metadata of T packed tokens that layers use besides the hidden states."""

    cu_seqlens: torch.Tensor  # (documents + 1,) int32, first 0, last T
    max_seqlen: int
    seq_idx: torch.Tensor  # (T,) int32, document index of each token
    rotary: tuple[torch.Tensor, torch.Tensor] | None  # cos and sin (T, 1, head_dim) fp32; None: no position embedding
    cache: GenerationCache | None = None  # of the texts that the tokens continue


class Linear(nn.Linear, CastWeight):
    """nn.Linear on the local shard of the weight. If the weight is split by inputs, outputs are partial sums over ranks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.cast("weight", x.dtype), self.local_bias(x.dtype))

    def local_bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """What this rank adds to its outputs (out,), if the layer has a bias."""
        return None if self.bias is None else (local_tensor(self.bias) / partial_sum_ranks(self.weight)).to(dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the root mean square is computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, local_tensor(self.weight), self.eps)

    def of_sum(self, x: torch.Tensor, update: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x + update (x itself if there is none) and its norm: what a residual connection and its next layer take."""
        return add_rms_norm(x, update, local_tensor(self.weight), self.eps)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU with the tanh approximation."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "relu2": relu2,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
}


def activation(name: str) -> Activation:
    """The activation function for `hidden_act` of a config. ModelError if it is not supported."""
    if name not in ACTIVATIONS:
        raise ModelError(
            f"activation {name!r} (hidden_act of the model's config.json) is not supported; supported: "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]
