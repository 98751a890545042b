"""The small parts that every family shares: linear layer, norm, activations, and what a layer must know of a packed row.

Owns the rule of precision: a layer computes in the dtype of its input, to which it rounds its weights, and gives that dtype
back. Weights of a `KeepFp32` layer are never rounded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.errors import ModelError
from sft_hydra.parallel.dtensor import local_tensor, partial_sum_ranks

Activation = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Packed:
    """What layers need beside the hidden states of T packed tokens."""

    cu_seqlens: torch.Tensor  # (documents + 1,) int32, first 0, last T
    max_seqlen: int
    seq_idx: torch.Tensor  # (T,) int32, number of each token's document
    rotary: tuple[torch.Tensor, torch.Tensor] | None  # cos and sin (T, 1, head_dim) fp32; None: no position embedding


class Linear(nn.Linear):
    """nn.Linear on this rank's part of the weight. Of a weight split by inputs, the outputs are to be summed over ranks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else (local_tensor(self.bias) / partial_sum_ranks(self.weight)).to(x.dtype)
        return F.linear(x, local_tensor(self.weight).to(x.dtype), bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the root mean square is taken in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, local_tensor(self.weight).to(x.dtype), self.eps)


def relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "relu2": relu2,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
}


def activation(name: str) -> Activation:
    """The function that `hidden_act` of a config names."""
    if name not in ACTIVATIONS:
        raise ModelError(f"activation {name!r} of the model's config is not known; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
