"""Activation checkpointing: what blocks keep of their forward pass, and what they compute again in the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
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


def recompute(block: nn.Module, kind: str) -> None:
    """Let a block keep its input alone (`full`), what is dear to compute (`selective`) or everything (`none`)."""
    if kind == "none":
        return
    how: dict[str, Callable[[], Any]] = {}
    if kind == "selective":
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, **how)  # type: ignore[method-assign]


def _policy(_: Any, op: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    dear = op.overloadpacket.__name__ in DEAR
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE
