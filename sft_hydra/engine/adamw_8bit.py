"""AdamW with 8-bit optimizer state through torchao: block-wise quantized Adam moments (Dettmers et al. 2022), uint8 codes
with one fp32 scale per block of 256 elements of the local shard.

All code that depends on torchao's 8-bit state is here. Imported only where 8-bit state is used or read: torchao is an extra.
"""

from collections.abc import Callable
from typing import Any

import torch

from sft_hydra.process.third_party_logs import quiet_third_party_logs

quiet_third_party_logs()

from torchao import optim  # noqa: E402
from torchao.optim.subclass_8bit import OptimState8bit  # noqa: E402


class AdamW8bit(optim.AdamW8bit):  # type: ignore[misc]
    """torchao's AdamW8bit with learning rates as floats. A parameter whose local shard has fewer than 4096 elements, or a
    number that is not a multiple of 256, keeps its optimizer state in fp32."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        lr = param_group["lr"]
        super().add_param_group(param_group)  # makes the learning rate a tensor
        param_group["lr"] = lr

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update. Compiled on a GPU, once for each parameter shape; on a CPU compiling takes longer than it saves."""
        learning_rates = [group["lr"] for group in self.param_groups]
        on_cpu = self.param_groups[0]["params"][0].device.type == "cpu"
        for group, lr in zip(self.param_groups, learning_rates, strict=True):
            group["lr"] = torch.tensor(lr, dtype=torch.float32)
        with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
            super().step()
        for group, lr in zip(self.param_groups, learning_rates, strict=True):
            group["lr"] = lr

    def new_moment(self, parameter: torch.Tensor, kind: str) -> torch.Tensor:
        """A zero Adam moment (`kind`: `exp_avg` or `exp_avg_sq`), sharded as the parameter; 8-bit if the local shard is
        large enough."""
        moment: torch.Tensor = self._new_buffer(parameter, _signed(kind))
        return moment


def decoded(codes: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    """Dequantize the moment `kind`: fp32 values from `codes` (uint8) and the `scale` of each code (fp32), all of one shape."""
    table = OptimState8bit.zeros((1,), signed=_signed(kind), block_size=1).qmap
    values: torch.Tensor = OptimState8bit(codes, scale.reshape(-1), table, _signed(kind)).dequantize()
    return values


def encode(moment: torch.Tensor, values: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> int:
    """Fill the local 8-bit `moment` with `values` (fp32). Returns how many elements were re-quantized.

    Elements with a scale above 0 were decoded from `codes`: a block with a single scale keeps its codes bit for bit.
    """
    assert isinstance(moment, OptimState8bit)
    moment.copy_(values)
    scales = scale.view(len(moment.scale), -1)
    kept = (scales[:, 0] > 0) & (scales == scales[:, :1]).all(1)
    moment.scale[kept] = scales[kept, 0]
    moment.codes.view(scales.shape)[kept] = codes.view(scales.shape)[kept]
    return int((~kept).sum()) * moment.block_size


def _signed(kind: str) -> bool:
    return kind == "exp_avg"
