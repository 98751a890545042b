"""How many parameters full fine-tuning trains where `train.freeze` or `train.trainable` names a part of the model.

Names and sizes are those of models/; tests hold both together. Biases, which few families have, are not counted. Where
patterns name them, and of families that are not ours, whose layers have names of their own, all is counted as trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sft_hydra.errors import ConfigError
from sft_hydra.planning.architecture import FAMILIES
from sft_hydra.planning.estimate.sizes import Sizes, sizes_of
from sft_hydra.planning.trained_parameters import choose_trained
from sft_hydra.schema.train import TrainConfig

Named = tuple[str, int]  # parameter, number of its elements


@dataclass(frozen=True, slots=True)
class Frozen:
    """Parameters that are not trained, and whether the tables are."""

    blocks: tuple[int, ...]  # of each block
    embedding: bool = False
    head: bool = False
    leading: int = 0  # blocks at the start that no gradient reaches


def frozen_parameters(arch: dict[str, Any], train: TrainConfig) -> Frozen:
    """What `train` freezes. ConfigError for patterns that match nothing, and if nothing is left to train."""
    s = sizes_of(arch)
    if not train.freeze and not train.trainable:
        return Frozen((0,) * len(s.blocks))
    hybrid = arch.get("model_type") == "nemotron_h"
    blocks = [list(_of_block(s, mixers, f"model.layers.{i}", hybrid)) for i, mixers in enumerate(s.blocks)]
    head = "model.embed_tokens.weight" if s.tied else "lm_head.weight"
    others = ["model.embed_tokens.weight", "model.norm.weight", head]
    try:
        trained = choose_trained(
            [*(name for block in blocks for name, _ in block), *others], train.freeze, train.trainable
        )
    except ConfigError:
        biases = any("bias" in pattern for pattern in [*train.freeze, *(train.trainable or ())])
        if arch.get("model_type") in FAMILIES and not biases:
            raise
        return Frozen((0,) * len(blocks))
    frozen = tuple(sum(size for name, size in block if name not in trained) for block in blocks)
    reached = (i for i, block in enumerate(blocks) if any(name in trained for name, _ in block))
    leading = 0 if others[0] in trained else next(reached, len(blocks))
    return Frozen(frozen, others[0] not in trained, head not in trained, leading)


def _of_block(s: Sizes, mixers: tuple[str, ...], block: str, hybrid: bool) -> Iterator[Named]:
    norms = {"attention": "input_layernorm", "mlp": "post_attention_layernorm", "moe": "post_attention_layernorm"}
    for mixer in mixers:
        place = "mixer" if hybrid else "self_attn" if mixer == "attention" else "mlp"
        yield f"{block}.{'norm' if hybrid else norms[mixer]}.weight", s.hidden
        for name, size in {"attention": _attention, "mamba": _mamba, "mlp": _mlp, "moe": _moe}[mixer](s):
            yield f"{block}.{place}.{name}", size


def _attention(s: Sizes) -> Iterator[Named]:
    yield from (("q_proj.weight", s.hidden * s.q), ("o_proj.weight", s.q * s.hidden))
    yield from ((f"{kind}.weight", s.hidden * s.kv) for kind in ("k_proj", "v_proj"))
    if s.qk_norm:
        yield from ((f"{kind}.weight", s.head_dim) for kind in ("q_norm", "k_norm"))


def _mamba(s: Sizes) -> Iterator[Named]:
    yield from (("in_proj.weight", s.hidden * s.mamba_in), ("out_proj.weight", s.mamba_inner * s.hidden))
    yield from (("conv1d.weight", s.conv * s.taps), ("conv1d.bias", s.conv), ("norm.weight", s.mamba_inner))
    yield from ((f"ssm.{kind}", s.mamba_heads) for kind in ("dt_bias", "A_log", "D"))


def _mlp(s: Sizes) -> Iterator[Named]:
    kinds = ("gate_proj", "up_proj", "down_proj") if s.gated else ("up_proj", "down_proj")
    yield from ((f"{kind}.weight", s.hidden * s.inner) for kind in kinds)


def _moe(s: Sizes) -> Iterator[Named]:
    first, width = ("gate_up_proj", 2 * s.expert_inner) if s.gated else ("up_proj", s.expert_inner)
    yield "gate.weight", s.experts * s.hidden
    yield f"experts.{first}.weight", s.experts * s.latent * width
    yield "experts.down_proj.weight", s.experts * s.expert_inner * s.latent
    if s.shared_inner:
        yield from ((f"shared_experts.{kind}.weight", s.hidden * s.shared_inner) for kind in ("up_proj", "down_proj"))
    if s.latent != s.hidden:
        yield from ((f"{kind}_latent_proj.weight", s.hidden * s.latent) for kind in ("fc1", "fc2"))
