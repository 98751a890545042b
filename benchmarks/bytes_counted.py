"""Counts what operations on fake tensors read, write and launch.

An operation reads each input and writes each output once. Exceptions: views and allocations move nothing; lookups read the rows
that they take; torch computes logsumexp in several kernels, and so does a loss or a norm of ours that reads its input
twice (PASSES).
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sft_hydra.kernels.lora import _run as _lora_linear

NOTHING = {"device", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view"}
LOOKUPS = {
    "embedding",
    "index",
    "gather",
    "index_select",
}  # (table, index...): as many bytes of the table as of the output
SCATTERS = {
    "scatter_",
    "scatter_add_",
    "index_put_",
    "scatter",
    "index_add_",
}  # as many bytes of the target as of the source
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "_grouped_mm", "linear"}
ATTENTION = {"_varlen_attn", "_varlen_attn_backward", "_flash_attn_varlen_forward", "_flash_attn_varlen_backward"}
# additional passes over the first input and additional kernels
PASSES = {
    "logsumexp": (5, 3),  # amax, sub, exp, sum
    "cross_entropy_": (1, 0),
    "add_rms_norm_backward": (0, 2),  # partial sums of the weight's gradient
    "norm_rotate_backward": (0, 2),
    "gated_norm_backward": (0, 2),
}


@dataclass
class Moved:
    """Bytes and kernels by operator."""

    bytes: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, float]:
        """GB and kernels: of all, and of all but matrix products and attention."""
        apart = PRODUCTS | ATTENTION
        return {
            "gigabytes": round(sum(self.bytes.values()) / 1e9, 2),
            "gigabytes_besides_products": round(sum(n for op, n in self.bytes.items() if op not in apart) / 1e9, 2),
            "kernels": sum(self.kernels.values()),
        }


class BytesMoved(TorchDispatchMode):
    """Counts the operations that run under it, for the current `phase`."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.moved: dict[str, Moved] = defaultdict(Moved)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__
        if name == "lora_linear":  # the products that it consists of
            with self:
                return _lora_linear(*args)
        out = op(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if name in NOTHING or _is_view(op) or not any(t.is_cuda for t in [*inputs, *outputs]):
            return out
        passes, kernels = PASSES.get(name, (0, 0))
        count = _bytes(op, name, args, inputs, outputs) + passes * size(inputs[0] if inputs else outputs[0])
        self.moved[self.phase].bytes[name] += count
        self.moved[self.phase].kernels[name] += 1 + kernels
        return out


def size(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements; an expanded dimension is read once."""
    elements = math.prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0)
    return elements * tensor.element_size()


def _is_view(op: Any) -> bool:
    returns = op._schema.returns
    aliases = [r.alias_info is not None and not r.alias_info.is_write for r in returns]
    return bool(returns) and all(aliases)


def _bytes(op: Any, name: str, args: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> int:
    if name in LOOKUPS:
        return sum(map(size, inputs[1:])) + 2 * sum(map(size, outputs))
    if name in SCATTERS:
        return sum(map(size, inputs[1:])) + 2 * size(inputs[-1])
    if name in ("copy_", "zero_", "fill_"):  # the target is not read
        return sum(map(size, inputs[1:])) + size(inputs[0])
    written = sum(map(size, outputs))
    for argument, value in zip(op._schema.arguments, args, strict=False):
        changed = argument.alias_info is not None and argument.alias_info.is_write
        if changed and isinstance(value, torch.Tensor) and not any(value is each for each in outputs):
            written += size(value)  # changed in place and not returned
    return sum(map(size, inputs)) + written
