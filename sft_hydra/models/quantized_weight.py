"""What a quantized weight stands for, and its bytes: `QuantizedWeight`.

The bytes of a weight are one uint8 parameter of the weight's name, so that FSDP and expert parallelism shard them as they
shard any parameter. A weight is always quantized whole, in the row order of Hugging Face's files: every layout, and the peft
and transformers libraries, have the same values.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from sft_hydra.errors import ConfigError
from sft_hydra.models.state_dict_map import Ranges, rows_from_disk, rows_to_disk
from sft_hydra.parallel.dtensor import local_shard

Where = tuple[slice, ...]


def check_bitsandbytes(kind: str) -> None:
    """ConfigError if bitsandbytes, which quantizes the base, is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"peft.quantize_base={kind} needs bitsandbytes: pip install 'bitsandbytes>=0.50' (the extra `qlora`)"
        )


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight ([experts,] out, in) of which only bytes are kept; those of each expert are a row."""

    kind: str  # nf4 or int8
    shape: torch.Size
    dtype: torch.dtype  # of the weight before it is quantized, and after it is dequantized
    rows: Ranges | None = None  # row ranges on disk, in our order, if the order differs

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of the bytes: (bytes,), of experts (experts, bytes)."""
        from sft_hydra.kernels.weight_quantization import packed_bytes

        return (*self.shape[:-2], packed_bytes(self.kind, *self.shape[-2:]))

    def needed(self, where: Where) -> Where:
        """The slices of the weight of which the slices `where` of its bytes are made: whole matrices."""
        experts = where[:-1]
        return (*experts, *(slice(0, size) for size in self.shape[-2:]))

    @torch.no_grad()
    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """The bytes of a weight, or of some experts' part of it, on its device."""
        from sft_hydra.kernels.weight_quantization import pack

        weight = weight.to(self.dtype)
        if weight.ndim == 2:
            return pack(self.kind, weight if self.rows is None else rows_to_disk(weight, self.rows))
        return torch.stack([pack(self.kind, expert) for expert in weight])

    @torch.no_grad()
    def unpack(self, packed: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight, or some experts' part of it, that `packed` stands for, in `dtype` (None: its own)."""
        from sft_hydra.kernels.weight_quantization import unpack

        weight = unpack(self.kind, torch.atleast_2d(packed), self.shape[-2], self.shape[-1], self.dtype)
        if packed.ndim == 1:
            weight = weight[0] if self.rows is None else rows_from_disk(weight[0], self.rows)
        return weight if dtype is None else weight.to(dtype)

    @torch.no_grad()
    def fill(self, parameter: torch.Tensor, weight: torch.Tensor) -> None:
        """Set what this rank holds of the bytes from `weight`, the part of the weight that `needed` names."""
        part, where = local_shard(parameter)
        packed = self.pack(weight.to(part.device))
        part.copy_(packed[..., where[-1]])
