"""How many parameters LoRA trains: of the very layers that `peft` chooses, by their names and sizes alone.

Names and sizes are those of models/; tests hold both together. Of families that are not ours about so.
"""

from collections.abc import Iterator
from typing import Any

from sft_hydra.errors import ConfigError
from sft_hydra.planning.architecture import FAMILIES
from sft_hydra.planning.estimate.sizes import Sizes, sizes_of
from sft_hydra.planning.lora_targets import EXPERTS, choose, layer_lora, usual_targets
from sft_hydra.schema.peft import LoraConfig

USUAL_DENSE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
USUAL_HYBRID = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "up_proj", "down_proj")
Layer = tuple[str, int, int]  # name, inputs, outputs


def table_parameters(arch: dict[str, Any], lora: LoraConfig, new_tokens: int) -> tuple[int, int]:
    """Parameters that LoRA trains of (embedding, head), as whole tables or as rows of new tokens; 0 for a tied head."""
    s = sizes_of(arch)
    if lora.trainable_new_tokens:
        return new_tokens * s.hidden, 0 if s.tied else new_tokens * s.hidden
    table, saved = s.vocab * s.hidden, set(lora.modules_to_save)
    if s.tied:
        return table if saved else 0, 0
    return table if "embed_tokens" in saved else 0, table if "lm_head" in saved else 0


def adapters_by_block(arch: dict[str, Any], lora: LoraConfig | None) -> list[int]:
    """Parameters of the adapters of each block. ConfigError for patterns that match none of the layers."""
    s = sizes_of(arch)
    if lora is None:
        return [0] * len(s.blocks)
    hybrid = arch.get("model_type") == "nemotron_h"
    blocks = [list(_layers(s, mixers, f"model.layers.{i}", hybrid)) for i, mixers in enumerate(s.blocks)]
    names = [name for block in blocks for name, *_ in block]
    usual = usual_targets(names, USUAL_HYBRID if hybrid else USUAL_DENSE)
    try:
        chosen = set(choose(names, lora, usual))
    except ConfigError:
        if arch.get("model_type") in FAMILIES:
            raise
        chosen = set(usual)  # its layers have names of their own
    return [sum(_parameters(s, layer, lora) for layer in block if layer[0] in chosen) for block in blocks]


def _parameters(s: Sizes, layer: Layer, lora: LoraConfig) -> int:
    name, inputs, outputs = layer
    count = s.experts if EXPERTS in name else 1
    return count * (layer_lora(lora, name).dim * (inputs + outputs) + (outputs if lora.use_dora else 0))


def _layers(s: Sizes, mixers: tuple[str, ...], block: str, hybrid: bool) -> Iterator[Layer]:
    for mixer in mixers:
        place = f"{block}.mixer" if hybrid else f"{block}.self_attn" if mixer == "attention" else f"{block}.mlp"
        for name, inputs, outputs in {"attention": _attention, "mamba": _mamba, "mlp": _mlp, "moe": _moe}[mixer](s):
            yield f"{place}.{name}", inputs, outputs


def _attention(s: Sizes) -> Iterator[Layer]:
    yield from (("q_proj", s.hidden, s.q), ("o_proj", s.q, s.hidden))
    yield from ((kind, s.hidden, s.kv) for kind in ("k_proj", "v_proj"))


def _mamba(s: Sizes) -> Iterator[Layer]:
    yield from (("in_proj", s.hidden, s.mamba_in), ("out_proj", s.mamba_inner, s.hidden))


def _mlp(s: Sizes) -> Iterator[Layer]:
    yield from ((kind, s.hidden, s.inner) for kind in (("gate_proj", "up_proj") if s.gated else ("up_proj",)))
    yield "down_proj", s.inner, s.hidden


def _moe(s: Sizes) -> Iterator[Layer]:
    yield (
        ("experts.gate_up_proj", s.latent, 2 * s.expert_inner)
        if s.gated
        else ("experts.up_proj", s.latent, s.expert_inner)
    )
    yield "experts.down_proj", s.expert_inner, s.latent
    if s.shared_inner:
        yield "shared_experts.up_proj", s.hidden, s.shared_inner
        yield "shared_experts.down_proj", s.shared_inner, s.hidden
    if s.latent != s.hidden:
        yield from (("fc1_latent_proj", s.hidden, s.latent), ("fc2_latent_proj", s.latent, s.hidden))
