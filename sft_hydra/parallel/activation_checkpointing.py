"""Activation checkpointing: what blocks keep of their forward pass, and what they compute again in the backward pass."""

from functools import partial
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# Products of matrices and attention: nearly all of the work. Norms, activations, rotary and the like are cheap.
DEAR = {
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
}


def checkpoint_activations(block: nn.Module, kind: str) -> None:
    """Let a block keep its input alone (`full`), what is dear to compute (`selective`) or everything (`none`)."""
    if kind == "none":
        return
    how = {"context_fn": _keep_dear} if kind == "selective" else {}
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, **how)  # type: ignore[method-assign]


def _keep_dear() -> tuple["_OfDear", "_OfDear"]:
    keeping, giving = create_selective_checkpoint_contexts(lambda *_, **__: CheckpointPolicy.MUST_SAVE)
    return _OfDear(keeping), _OfDear(giving)


class _OfDear(TorchDispatchMode):
    """torch's mode, for dear operations alone: it wants all that it sees to come again, what FSDP does at inner layers
    does not."""

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.overloadpacket.__name__ in DEAR:
            return self.mode.__torch_dispatch__(op, types, args, kwargs)
        return op(*args, **(kwargs or {}))
