"""Transformer decoders: Qwen3, Qwen2, Llama, Mistral and models with the same architecture (SmolLM is a Llama), and
Qwen3-MoE, whose feed-forward layers are mixtures of experts."""

from typing import Any

import torch
from torch import nn

from sft_hydra.models.decoder import FamilyModel
from sft_hydra.models.layers import Packed, RMSNorm
from sft_hydra.models.mlp import MLP
from sft_hydra.models.moe import Experts, MoE, SoftmaxRouter
from sft_hydra.models.rotary import check_rotary
from sft_hydra.models.self_attention import Attention

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")


class DenseBlock(nn.Module):
    """Pre-norm attention, then a pre-norm feed-forward layer, each added to its input."""

    def __init__(self, hidden_size: int, norm_eps: float, attention: Attention, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(hidden_size, norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(hidden_size, norm_eps)
        self.mlp = mlp

    def forward(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        hidden, normed = self.input_layernorm.of_sum(hidden)
        hidden, normed = self.post_attention_layernorm.of_sum(hidden, self.self_attn(normed, packed))
        return hidden + self.mlp(normed)


def attention_of(config: Any, layer: int) -> Attention:
    """Attention of layer `layer` (from 0), with the biases, q/k norms and sliding window of the family and the config."""
    family = config.model_type
    layer_types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if layer_types is not None and layer_types[layer] == "full_attention":
        window = None
    bias = getattr(config, "attention_bias", False)
    return Attention(
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        qkv_bias=family == "qwen2" or bias,
        out_bias=bias,
        qk_norm_eps=config.rms_norm_eps if family.startswith("qwen3") else None,
        window=window,
    )


def mlp_of(config: Any, layer: int) -> nn.Module:
    """Feed-forward part of layer `layer`: an MLP, or a mixture of experts."""
    size = config.hidden_size
    if config.model_type != "qwen3_moe" or not _is_sparse(config, layer):
        return MLP(size, config.intermediate_size, config.hidden_act, bias=getattr(config, "mlp_bias", False))
    gate = SoftmaxRouter(size, config.num_experts, config.num_experts_per_tok, normalise=config.norm_topk_prob)
    return MoE(gate, Experts(config.num_experts, size, config.moe_intermediate_size, config.hidden_act, gated=True))


def _is_sparse(config: Any, layer: int) -> bool:
    every = (layer + 1) % config.decoder_sparse_step == 0
    return every and config.num_experts > 0 and layer not in config.mlp_only_layers


def dense_model(config: Any) -> FamilyModel:
    """The model for a transformers config of one of these families. ModelError if its RoPE scaling is not supported."""
    check_rotary(config)

    blocks: list[nn.Module] = []
    for layer in range(config.num_hidden_layers):
        attention, mlp = attention_of(config, layer), mlp_of(config, layer)
        blocks.append(DenseBlock(config.hidden_size, config.rms_norm_eps, attention, mlp))
    return FamilyModel(config, blocks, norm_eps=config.rms_norm_eps, rotary=True, lora_targets=LORA_TARGETS)
