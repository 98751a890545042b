"""Nemotron-H (NVIDIA 2025): layers of Mamba-2, attention without position embedding, mixture of experts and plain
feed-forward, in any order."""

from typing import Any

import torch
from torch import nn

from sft_hydra.errors import ModelError
from sft_hydra.models.decoder import FamilyModel
from sft_hydra.models.layers import Linear, Packed, RMSNorm
from sft_hydra.models.mamba import Mamba
from sft_hydra.models.mlp import MLP
from sft_hydra.models.moe import Experts, MoE, SigmoidRouter
from sft_hydra.models.self_attention import Attention

# without Mamba's out_proj, whose adapters the peft library refuses to load
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "up_proj", "down_proj")


class HybridBlock(nn.Module):
    """One pre-norm mixer with residual connection. `packed_mixer`: the mixer uses other tokens and takes `Packed`."""

    def __init__(self, hidden_size: int, norm_eps: float, mixer: nn.Module, *, packed_mixer: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, norm_eps)
        self.mixer = mixer
        self.packed_mixer = packed_mixer

    def forward(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        hidden, normed = self.norm.of_sum(hidden)
        return hidden + (self.mixer(normed, packed) if self.packed_mixer else self.mixer(normed))


def nemotron_h_model(config: Any) -> FamilyModel:
    """The model for a transformers NemotronHConfig. ModelError for unsupported settings."""
    problems = []
    if config.n_group != 1:
        problems.append(f"n_group {config.n_group} of the model's config.json is not supported; only 1 is")
    if config.sliding_window is not None:
        problems.append(
            f"sliding_window {config.sliding_window} of the model's config.json is not supported for nemotron_h"
        )
    if problems:
        raise ModelError(*problems)
    blocks: list[nn.Module] = []
    for kind in config.layers_block_type:
        packed = kind in ("linear_attention", "full_attention")
        blocks.append(
            HybridBlock(config.hidden_size, config.layer_norm_epsilon, _mixer(config, kind), packed_mixer=packed)
        )
    return FamilyModel(config, blocks, norm_eps=config.layer_norm_epsilon, rotary=False, lora_targets=LORA_TARGETS)


def _mixer(config: Any, kind: str) -> nn.Module:
    size = config.hidden_size
    if kind == "linear_attention":
        return _mamba(config)
    if kind == "full_attention":
        return Attention(size, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    if kind == "moe":
        return _moe(config)
    return MLP(size, config.intermediate_size, config.mlp_hidden_act, gated=False, bias=config.mlp_bias)


def _mamba(config: Any) -> Mamba:
    low, high = config.time_step_limit  # (0, inf) in the published models
    return Mamba(
        config.hidden_size,
        config.mamba_num_heads,
        config.mamba_head_dim,
        config.n_groups,
        config.ssm_state_size,
        config.conv_kernel,
        norm_eps=config.layer_norm_epsilon,
        chunk=config.chunk_size,
        dt_limit=(low, high),
        bias=config.use_bias,
        conv_bias=config.use_conv_bias,
    )


def _moe(config: Any) -> MoE:
    size, latent, act = config.hidden_size, config.moe_latent_size, config.mlp_hidden_act
    gate = SigmoidRouter(
        size,
        config.n_routed_experts,
        config.num_experts_per_tok,
        normalise=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
    )
    experts = Experts(config.n_routed_experts, latent or size, config.moe_intermediate_size, act, gated=False)
    shared_size = config.moe_shared_expert_intermediate_size
    shared = MLP(size, shared_size, act, gated=False, bias=config.mlp_bias, split=False)
    projections = None
    if latent:
        projections = (Linear(size, latent, bias=config.mlp_bias), Linear(latent, size, bias=config.mlp_bias))
    return MoE(gate, experts, shared_experts=shared, latent=projections)
