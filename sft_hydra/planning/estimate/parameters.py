"""Parameter counts of a model: total, active, per part, trainable."""

from dataclasses import dataclass
from typing import Any

from sft_hydra.planning.estimate.adapters import adapters_by_block, table_parameters
from sft_hydra.planning.estimate.sizes import Sizes, sizes_of
from sft_hydra.planning.estimate.trained import frozen_parameters
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import TrainConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameter counts."""

    total: int
    active: int
    """Used by one token: routed experts count only as often as they are chosen."""
    expert: int
    """Part of `total` in routed experts."""
    embedding: int
    """Input embedding (and the head if untied)."""


def count_parameters(arch: dict[str, Any]) -> Parameters:
    """Counts from the fields of config.json; exact for our families, approximate for others."""
    s = sizes_of(arch)
    mixers = [mixer for block in s.blocks for mixer in block]
    embedding = s.vocab * s.hidden * (1 if s.tied else 2)
    common = embedding + s.hidden + sum(mixer_parameters(s, mixer) for mixer in mixers)
    one = expert_parameters(s)
    return Parameters(
        total=common + s.count("moe") * s.experts * one,
        active=common + s.count("moe") * s.chosen * one,
        expert=s.count("moe") * s.experts * one,
        embedding=embedding,
    )


def mixer_parameters(s: Sizes, mixer: str) -> int:
    """Parameters of one mixer with its norm, without routed experts."""
    if mixer == "attention":
        norms = 2 * s.head_dim if s.qk_norm else 0
        return s.hidden * (2 * s.q + 2 * s.kv) + norms + s.hidden
    if mixer == "mamba":
        vectors = s.conv * (s.taps + 1) + 3 * s.mamba_heads + s.mamba_inner
        return s.hidden * (s.mamba_in + s.mamba_inner) + vectors + s.hidden
    if mixer == "mlp":
        return (3 if s.gated else 2) * s.hidden * s.inner + s.hidden
    router = s.experts * (s.hidden + (0 if s.gated else 1))
    projections = 2 * s.hidden * s.latent if s.latent != s.hidden else 0
    return router + 2 * s.hidden * s.shared_inner + projections + s.hidden


def linear_parameters(s: Sizes, mixer: str) -> int:
    """Those of a mixer that are weights of linear layers, without routed experts: what `peft.quantize_base` quantizes."""
    if mixer == "attention":
        return s.hidden * (2 * s.q + 2 * s.kv)
    if mixer == "mamba":
        return s.hidden * (s.mamba_in + s.mamba_inner)
    if mixer == "mlp":
        return (3 if s.gated else 2) * s.hidden * s.inner
    return 2 * s.hidden * s.shared_inner + (2 * s.hidden * s.latent if s.latent != s.hidden else 0)


def largest_linear(s: Sizes, mixer: str, ep: int) -> int:
    """Parameters of a mixer's largest linear layer; of routed experts, of those of a rank together."""
    if mixer == "attention":
        return s.hidden * max(s.q, s.kv)
    if mixer == "mamba":
        return s.hidden * s.mamba_in
    if mixer == "mlp":
        return s.hidden * s.inner
    return max((2 if s.gated else 1) * s.experts * s.latent * s.expert_inner // ep, s.hidden * s.shared_inner)


def expert_parameters(s: Sizes) -> int:
    """Parameters of one routed expert."""
    return (3 if s.gated else 2) * s.latent * s.expert_inner


def trainable_parameters(
    arch: dict[str, Any], peft: LoraConfig | None, new_tokens: int = 0, train: TrainConfig | None = None
) -> int:
    """All but those that `train` freezes; or those of the adapters on the layers that `peft` chooses, and of embedding and head
    beside them."""
    if peft is not None:
        return sum(adapters_by_block(arch, peft)) + sum(table_parameters(arch, peft, new_tokens))
    params = count_parameters(arch)
    if train is None:
        return params.total
    s, frozen = sizes_of(arch), frozen_parameters(arch, train)
    tables = frozen.embedding + (frozen.head and not s.tied)
    return params.total - sum(frozen.blocks) - tables * s.vocab * s.hidden
