"""Tiny random models of families that train through the transformers implementation."""

from typing import Any

import torch
from support.packed import VOCAB

from sft_hydra.models.build import build_model
from sft_hydra.models.hf.causal_lm import GenericModel

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OLD_SIZES: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
# what is special about each: scores and logits capped, windows, sinks, fused projections, learnt positions, factors here
# and there, norms elsewhere
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": SIZES | {"sliding_window": 7, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
    "gemma3_text": SIZES
    | {"dtype": "bfloat16", "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": SIZES | {"sliding_window": 9},
    "olmo2": SIZES,
    "gpt2": OLD_SIZES,
    "gpt_neox": SIZES,
    "granite": SIZES
    | {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "granite_swa": SIZES | {"sliding_window": 7},
    "starcoder2": SIZES | {"sliding_window": 7},
    "cohere": SIZES | {"logit_scale": 0.2},
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "smollm3": SIZES,
}
# state spaces, recurrences and convolutions run through a whole row; others cannot be told of its borders
LEAKING: dict[str, dict[str, Any]] = {
    "bamba": SIZES
    | {
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_expand": 2,
    },
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": SIZES | {"lru_width": 32, "attention_window_size": 64, "num_hidden_layers": 3},
    "mamba2": SIZES | {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2},
    "bloom": SIZES,
    "stablelm": SIZES,
}


def generic(family: str, *, packed: bool = True, **fields: Any) -> GenericModel:
    """A model of a family, all of whose weights are random."""
    sizes = FAMILIES.get(family) or LEAKING.get(family) or SIZES
    architecture = {"model_type": family, **sizes, **fields}
    model = build_model(architecture, "cpu", torch.float32, generic=True, packed=packed)
    assert isinstance(model, GenericModel)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.3
            parameter.normal_(0.0, spread, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter += 1.0
    return model
