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
    """One pre-norm mixer with residual connection.

    There is a class with a `forward` of its own for each kind of mixer: torch.compile counts the graphs of a function, and
    runs it uncompiled beyond a limit, which a forward shared by all kinds would reach.
    """

    def __init__(self, hidden_size: int, norm_eps: float, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, norm_eps)
        self.mixer = mixer


class MambaBlock(HybridBlock):
    """A block of Mamba-2."""

    def forward(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        hidden, normed = self.norm.of_sum(hidden)
        return hidden + self.mixer(normed, packed)


class AttentionBlock(HybridBlock):
    """A block of attention."""

    def forward(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        hidden, normed = self.norm.of_sum(hidden)
        return hidden + self.mixer(normed, packed)


class MoEBlock(HybridBlock):
    """A block with a mixture of experts."""

    def forward(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        hidden, normed = self.norm.of_sum(hidden)
        return hidden + self.mixer(normed)


class MLPBlock(HybridBlock):
    """A block with a plain feed-forward layer."""

    def forward(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        hidden, normed = self.norm.of_sum(hidden)
        return hidden + self.mixer(normed)


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
    blocks = [_block(config, kind) for kind in config.layers_block_type]
    return FamilyModel(config, blocks, norm_eps=config.layer_norm_epsilon, rotary=False, lora_targets=LORA_TARGETS)


def _block(config: Any, kind: str) -> nn.Module:
    size, eps = config.hidden_size, config.layer_norm_epsilon
    if kind == "linear_attention":
        return MambaBlock(size, eps, _mamba(config))
    if kind == "full_attention":
        heads = config.num_attention_heads, config.num_key_value_heads
        return AttentionBlock(size, eps, Attention(size, *heads, config.head_dim))
    if kind == "moe":
        return MoEBlock(size, eps, _moe(config))
    mlp = MLP(size, config.intermediate_size, config.mlp_hidden_act, gated=False, bias=config.mlp_bias)
    return MLPBlock(size, eps, mlp)


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
