"""AdamW with moments of eight bits, by torchao: codes, and a scale for every 256 numbers of what a rank holds.

Owns all that is torchao's about them. Imported only where eight bits are asked for or read: torchao is an extra.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

for chatty in ("torchao", "torch.utils._pytree"):  # of kernels, none of them used here, that cannot be loaded
    logging.getLogger(chatty).setLevel(logging.ERROR)

from torchao import optim  # noqa: E402
from torchao.optim.subclass_8bit import OptimState8bit  # noqa: E402


class AdamW8bit(optim.AdamW8bit):  # type: ignore[misc]
    """torchao's, with rates that are plain numbers. A weight of which a rank holds fewer than 4096 numbers, or no multiple
    of 256, keeps moments in fp32."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        rate = param_group["lr"]
        super().add_param_group(param_group)  # makes the rate a tensor
        param_group["lr"] = rate

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Compiled on a GPU, once for each shape of a weight; on a CPU that takes longer than it saves."""
        rates = [group["lr"] for group in self.param_groups]
        on_cpu = self.param_groups[0]["params"][0].device.type == "cpu"
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = torch.tensor(rate, dtype=torch.float32)
        with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
            super().step()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate

    def new_moment(self, parameter: torch.Tensor, kind: str) -> torch.Tensor:
        """The moment `kind`, zero, laid out as the parameter: in eight bits where the rank's part is large enough."""
        moment: torch.Tensor = self._new_buffer(parameter, _signed(kind))
        return moment


def decoded(codes: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    """Values (fp32) of the moment `kind` from codes (uint8) and the scale of each of them (fp32), all of one shape."""
    table = OptimState8bit.zeros((1,), signed=_signed(kind), block_size=1).qmap
    values: torch.Tensor = OptimState8bit(codes, scale.reshape(-1), table, _signed(kind)).dequantize()
    return values


def encode(moment: torch.Tensor, values: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> int:
    """Fill a rank's moment in eight bits with `values`. Returns how many of them were rounded.

    Those with a scale above 0 were decoded from `codes`: where a block has one scale its codes are kept, bit for bit.
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
