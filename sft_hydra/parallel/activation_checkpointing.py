"""Activation checkpointing, full or selective: which activations a block keeps and which it recomputes in the backward
pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# Matrix products and attention, nearly all of the FLOPs. Norms, activations and rotary embeddings are cheap to recompute.
EXPENSIVE_OPS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_grouped_mm",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_varlen_attn",
    "_flash_attn_varlen_forward",
    "lora_linear",  # two products and a small one
}


def checkpoint_activations(block: nn.Module, kind: str) -> None:
    """Make a block keep its input only (`full`), its input and the outputs of expensive operations (`selective`) or all
    activations (`none`)."""
    if kind != "none":
        block.forward = checkpointed(block.forward, kind)  # type: ignore[method-assign]


def checkpointed(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """`function` with activation checkpointing, `selective` or `full`."""
    how = {"context_fn": _save_expensive} if kind == "selective" else {}
    return partial(checkpoint, function, use_reentrant=False, **how)


def _save_expensive() -> tuple["_ExpensiveOnly", "_ExpensiveOnly"]:
    forward, recompute = create_selective_checkpoint_contexts(lambda *_, **__: CheckpointPolicy.MUST_SAVE)
    return _ExpensiveOnly(forward), _ExpensiveOnly(recompute)


class _ExpensiveOnly(TorchDispatchMode):
    """Applies torch's selective-checkpoint mode to expensive operations only: the mode requires every operation to repeat in
    the recomputation, and FSDP's operations at inner layers do not."""

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.overloadpacket.__name__ in EXPENSIVE_OPS:
            return self.mode.__torch_dispatch__(op, types, args, kwargs)
        return op(*args, **(kwargs or {}))
