"""Our packed attention as an `attn_implementation` for transformers models.

No argument of an attention layer is silently ignored: what our kernels do not support is a ModelError. In place of
transformers' attention mask, a layer gets only the size of its sliding window.
"""

from typing import Any

import torch
from torch import nn

from sft_hydra.errors import ModelError
from sft_hydra.kernels.attention import attend
from sft_hydra.kernels.capped_attention import attend_capped

NAME = "sft_hydra_packed"
WAY_OUT = "set data.packing=none to train one conversation per sequence"
# arguments of attention layers without effect here: caches, outputs and masks that training does not use, and the window
# that the mask holds as well
HARMLESS = {
    "sliding_window", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits",
    "position_ids", "cache_position", "past_key_values", "return_dict", "deterministic", "logits_to_keep", "position_embeddings",
    "cu_seq_lens_k", "max_length_k", "layer_idx", "num_items_in_batch", "head_mask",
}  # fmt: skip


def register() -> str:
    """Register the implementation with transformers. Returns the name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, window_as_mask)
    return NAME


def window_as_mask(
    *, config: Any, device: torch.device, use_vmap: bool = False, local_size: int | None = None, **_: Any
) -> torch.Tensor | None:
    """In place of a mask: None for plain causal attention, or the window size as a tensor (1, 1, 1, 1).

    ModelError for masks other than causal or sliding-window ones.
    """
    chunk = getattr(config, "attention_chunk_size", None)
    if use_vmap or not getattr(config, "is_causal", True) or (local_size is not None and local_size == chunk):
        raise ModelError(
            f"model_type {config.model_type!r} uses an attention mask (chunked, or attending to later tokens) that is not "
            f"supported with packing; {WAY_OUT}"
        )
    return None if local_size is None else torch.full((1, 1, 1, 1), local_size)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Output (1, T, H, d) of `query` (1, H, T, d), `key` and `value` (1, K, T, d). ModelError for unsupported arguments."""
    unknown = sorted(name for name, value in arguments.items() if name not in HARMLESS and value is not None)
    if cu_seq_lens_q is None or max_length_q is None:
        unknown.append("attention without document boundaries")
    if is_causal is False or not getattr(module, "is_causal", True):
        unknown.append("attention to later tokens")
    if dropout:
        unknown.append("dropout")
    if unknown:
        raise ModelError(
            f"{type(module).__name__} uses {', '.join(unknown)}, which packed attention does not support; {WAY_OUT}"
        )
    assert cu_seq_lens_q is not None
    assert max_length_q is not None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    q, k = q.to(v.dtype), k.to(v.dtype)
    scale = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = None if attention_mask is None else int(attention_mask)
    if softcap is None and s_aux is None:
        out = attend(q, k, v, cu_seq_lens_q, max_length_q, scale, window)
    else:
        out = attend_capped(q, k, v, cu_seq_lens_q, scale, window, cap=softcap, sinks=s_aux)
    return out[None], None
