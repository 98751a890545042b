"""Tensors of Hugging Face's files <-> tensors of Megatron-Core's checkpoints: `places(config, name)`.

Megatron lays layers of one kind on top of each other (`decoder.layers.mlp...`, the layer is the first index) or names each
(`decoder.layers.3.mlp...`), joins q, k and v of a query group, gate and up, and splits Mamba's in_proj and conv1d by kind.
Names without Transformer Engine were seen in checkpoints that megatron-core wrote; those with it (`*.layer_norm_weight` of a
hybrid, `pre_mlp_layernorm` of a mixture) are those of Megatron-Bridge's public tables for Qwen3, Qwen3-MoE and Nemotron-H, and
so are those of multi-token prediction, whose blocks Hugging Face's files number through and Megatron nests.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

LAYER = re.compile(r"(?:model|backbone)\.layers\.(\d+)\.(.+)")
MTP = re.compile(r"mtp\.layers\.(\d+)\.(.+)")
EXPERT = re.compile(r"experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
STACK = "decoder.layers."
TOP = {
    "embed_tokens.weight": ("embedding.word_embeddings.weight",),
    "embeddings.weight": ("embedding.word_embeddings.weight",),
    "norm.weight": ("decoder.final_layernorm.weight",),
    "norm_f.weight": ("decoder.final_norm.weight",),
    "lm_head.weight": ("output_layer.weight",),
}
SAME = {  # in a layer: without the last word, `weight` or `bias`
    "self_attn.o_proj": "self_attention.linear_proj",
    "self_attn.q_norm": "self_attention.q_layernorm",
    "self_attn.k_norm": "self_attention.k_layernorm",
    "mlp.down_proj": "mlp.linear_fc2",
    "mlp.gate": "mlp.router",
    "mixer.o_proj": "self_attention.linear_proj",
    "mixer.out_proj": "mixer.out_proj",
    "mixer.norm": "mixer.norm",
    "mixer.up_proj": "mlp.linear_fc1",
    "mixer.down_proj": "mlp.linear_fc2",
    "mixer.gate": "mlp.router",
    "mixer.shared_experts.up_proj": "mlp.shared_experts.linear_fc1",
    "mixer.shared_experts.down_proj": "mlp.shared_experts.linear_fc2",
    "mixer.fc1_latent_proj": "mlp.fc1_latent_proj",
    "mixer.fc2_latent_proj": "mlp.fc2_latent_proj",
}
ALONE = {
    "mixer.A_log": "mixer.A_log",
    "mixer.D": "mixer.D",
    "mixer.dt_bias": "mixer.dt_bias",
    "mixer.gate.e_score_correction_bias": "mlp.router.expert_bias",
}
BEFORE_BLOCK = ("eh_proj.weight", "enorm.weight", "hnorm.weight")  # of multi-token prediction
AFTER_BLOCK = ("final_layernorm.weight",)
BEFORE_ATTENTION = ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
BEFORE_MLP = ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight")
BEFORE_EXPERTS = BEFORE_MLP[::-1]
BEFORE_MAMBA = ("mixer.in_proj.layer_norm_weight", "norm.weight")

NORMS = {
    "linear_attention": BEFORE_MAMBA,
    "full_attention": BEFORE_ATTENTION,
    "moe": BEFORE_EXPERTS,
    "mlp": BEFORE_MLP,
}  # by the kind of a hybrid's layer


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one of Megatron's tensors, behind the indices of layer and expert. `rows`: (start, stop), None: all of them.
    `of`: how many rows that tensor has, None: as many as this piece. `stacked`: lengths of the axes that `index` is into."""

    key: str
    index: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None
    of: int | None = None
    stacked: tuple[int, ...] = ()


Place = tuple[Piece, ...]


def places(config: Any, name: str) -> list[Place]:
    """Where a tensor may lie, as pieces that follow each other in its rows. Of several places, a checkpoint has one; the first
    is where we write. Nothing for a name that Megatron has no place for."""
    if match := MTP.fullmatch(name):
        return _of_prediction(config, int(match[1]), match[2])
    match = LAYER.fullmatch(name)
    if match is None:
        short = name.removeprefix("model.").removeprefix("backbone.")
        rows = (
            (0, config.vocab_size) if short in ("embed_tokens.weight", "embeddings.weight", "lm_head.weight") else None
        )
        return [(Piece(key, rows=rows),) for key in TOP.get(short, ())]
    layer, rest = int(match[1]), match[2]
    return [place for pieces in _of_layer(config, layer, rest) for place in _both_ways(config, layer, pieces)]


def mtp_names(config: Any) -> list[str]:
    """What the tensors of multi-token prediction may be called in Hugging Face's files; those of one model are some of them."""
    kinds = (getattr(config, "mtp_layers_block_type", None) or []) if config.model_type == "nemotron_h" else []
    found = []
    for layer, kind in enumerate(kinds * int(getattr(config, "num_nextn_predict_layers", None) or 0)):
        inner = layer % len(kinds)
        rests = [
            "norm.weight",
            *(BEFORE_BLOCK if inner == 0 else ()),
            *(AFTER_BLOCK if inner == len(kinds) - 1 else ()),
        ]
        if kind == "full_attention":
            rests += [f"mixer.{name}_proj.weight" for name in "qkvo"]
        elif kind == "moe":
            experts = [f"experts.{number}" for number in range(config.n_routed_experts)]
            rests += [
                f"mixer.{part}.{way}_proj.weight" for part in (*experts, "shared_experts") for way in ("up", "down")
            ]
            rests += ["mixer.gate.weight", "mixer.gate.e_score_correction_bias"]
            rests += [f"mixer.fc{number}_latent_proj.weight" for number in (1, 2)]
        elif kind == "mlp":
            rests += [f"mixer.{way}_proj.weight" for way in ("up", "down")]
        found += [f"mtp.layers.{layer}.{rest}" for rest in rests]
    return found


def _of_prediction(config: Any, layer: int, rest: str) -> list[Place]:
    kinds = getattr(config, "mtp_layers_block_type", None) or []
    if not kinds or layer >= len(kinds) * config.num_nextn_predict_layers:
        return []
    outer, inner = divmod(layer, len(kinds))
    if rest in (*BEFORE_BLOCK, *AFTER_BLOCK):
        return [(Piece(f"mtp.layers.{outer}.{rest}"),)]
    within = f"mtp.layers.{outer}.mtp_model_layer.layers.{inner}."
    found = [(Piece(key),) for key in NORMS[kinds[inner]]] if rest == "norm.weight" else _of_layer(config, layer, rest)
    return [tuple(replace(piece, key=within + piece.key) for piece in place) for place in found]


def _both_ways(config: Any, layer: int, pieces: Place) -> list[Place]:
    """The pieces of a layer in a stack of all layers, and by the layer's own name; first as megatron-core writes them."""
    count = config.num_hidden_layers
    stack = tuple(Piece(STACK + p.key, (layer, *p.index), p.rows, p.of, (count, *p.stacked)) for p in pieces)
    alone = tuple(Piece(f"{STACK}{layer}.{p.key}", p.index, p.rows, p.of, p.stacked) for p in pieces)
    return [stack, alone] if all_alike(config) else [alone, stack]


def all_alike(config: Any) -> bool:
    """Whether all layers hold the same tensors, so that megatron-core stacks them."""
    if config.model_type == "nemotron_h":
        return False
    return config.model_type != "qwen3_moe" or (not config.mlp_only_layers and config.decoder_sparse_step == 1)


def _of_layer(config: Any, layer: int, rest: str) -> list[Place]:
    stem, _, last = rest.rpartition(".")
    if expert := EXPERT.fullmatch(rest.partition(".")[2]):
        return [_expert(config, int(expert[1]), expert[2])]
    if rest in ALONE:
        return [(Piece(ALONE[rest]),)]
    if rest in ("input_layernorm.weight", "post_attention_layernorm.weight", "norm.weight"):
        return [(Piece(key),) for key in _norms(config, layer, rest)]
    if stem in SAME:
        return [(Piece(f"{SAME[stem]}.{last}"),)]
    kind = stem.partition(".")[2]
    if kind in ("q_proj", "k_proj", "v_proj"):
        return [_of_query_groups(config, kind[0], f"self_attention.linear_qkv.{last}")]
    if stem in ("mlp.gate_proj", "mlp.up_proj"):
        half = config.intermediate_size
        rows = (0, half) if kind == "gate_proj" else (half, 2 * half)
        return [(Piece(f"mlp.linear_fc1.{last}", rows=rows, of=2 * half),)]
    if stem in ("mixer.in_proj", "mixer.conv1d"):
        kinds = ("z", "x", "B", "C", "dt") if kind == "in_proj" else ("x", "B", "C")
        sizes = _mamba_sizes(config)
        return [tuple(Piece(f"{rest}.{part}", rows=(0, sizes[part]), of=sizes[part]) for part in kinds)]
    return []


def _mamba_sizes(config: Any) -> dict[str, int]:
    inner, states = config.mamba_num_heads * config.mamba_head_dim, config.n_groups * config.ssm_state_size
    return {"z": inner, "x": inner, "B": states, "C": states, "dt": config.mamba_num_heads}


def _norms(config: Any, layer: int, rest: str) -> tuple[str, ...]:
    if rest == "input_layernorm.weight":
        return BEFORE_ATTENTION
    if rest == "post_attention_layernorm.weight":
        sparse = config.model_type == "qwen3_moe" and not (
            layer in config.mlp_only_layers or (layer + 1) % config.decoder_sparse_step
        )
        return BEFORE_EXPERTS if sparse else BEFORE_MLP
    return NORMS[config.layers_block_type[layer]]


def _expert(config: Any, number: int, kind: str) -> Place:
    count = next(n for key in ("num_experts", "n_routed_experts") if (n := getattr(config, key, None)) is not None)
    stacked = (count,)
    if kind == "down_proj":
        return (Piece("mlp.experts.experts.linear_fc2.weight", (number,), stacked=stacked),)
    key = "mlp.experts.experts.linear_fc1.weight"
    if config.model_type == "nemotron_h":
        return (Piece(key, (number,), stacked=stacked),)
    half = config.moe_intermediate_size
    rows = (0, half) if kind == "gate_proj" else (half, 2 * half)
    return (Piece(key, (number,), rows, 2 * half, stacked),)


def _of_query_groups(config: Any, kind: str, key: str) -> Place:
    """Rows of q, k or v: each query group has its queries, then its key, then its value."""
    groups = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads // groups
    first, count = {"q": (0, queries), "k": (queries, 1), "v": (queries + 1, 1)}[kind]
    width = (queries + 2) * size
    starts = [group * width + first * size for group in range(groups)]
    return tuple(Piece(key, rows=(start, start + count * size), of=groups * width) for start in starts)
