"""Registers functions as operators of torch, `torch.ops.sft_hydra.<name>`: Triton kernels then run on fake tensors, and dispatch
modes, such as selective recompute, see one operation.

Operators have no gradients of their own: autograd functions call them. On the CPU Triton kernels run only in Triton's
interpreter (TRITON_INTERPRET=1).
"""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("sft_hydra", "FRAGMENT")
INTERPRETED_PROGRAMS = 3


def operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """The operator of a `schema`, "name(Tensor x) -> Tensor": `run` computes, `fake` makes outputs without values."""
    name = LIBRARY.define(schema)
    for key in ("CUDA", "CPU"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"sft_hydra::{name}", fake, lib=LIBRARY)
    overload: Callable[..., Any] = getattr(torch.ops.sft_hydra, name).default
    return overload


def programs(x: torch.Tensor, work: int) -> int:
    """How many programs share `work` pieces where each keeps a partial sum of a weight's gradient: a few per processor."""
    if x.device.type == "cpu":
        return min(work, INTERPRETED_PROGRAMS)
    return min(work, 4 * torch.cuda.get_device_properties(x.device).multi_processor_count)


def warps(block: int) -> int:
    """Warps of a program for rows of `block` elements."""
    return min(16, max(1, block // 256))
