"""A model's architecture, as the fields of its config.json: read from the model's files, else from `model.architecture`.

Torch-free and without network access: a hub id is looked up in the local cache of huggingface_hub.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_hydra.errors import ModelError
from sft_hydra.planning.megatron_checkpoint import megatron_config, torch_dist_folder
from sft_hydra.schema.config import SftConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "nemotron_h")  # model_types with an implementation here
MAX_SIZES = {
    "num_hidden_layers": 10_000,
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), 100_000),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 100_000_000),
    **dict.fromkeys(("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups"), 1_000_000),
    **dict.fromkeys(("conv_kernel", "chunk_size"), 100_000_000),
    "max_position_embeddings": 10**10,
}  # of sizes: what is beyond is a mistake, or meant to exhaust a machine
POSITIVE = (
    "rope_theta",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "factor",
    "partial_rotary_factor",
)
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
HYBRID_KINDS = {
    "linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "moe": "E", "mlp": "-",
}  # fmt: skip
OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "num_heads", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "d_ff", "ffn_hidden_size"),
}  # names of sizes in older families


def read_architecture(cfg: SftConfig) -> dict[str, Any]:
    """Fields of config.json; `model.architecture` if there is no local file, which may be empty.

    Raises ModelError if the config.json that is there cannot be read, or sizes cannot be.
    """
    file = config_file(cfg.model.path, cfg.model.revision)
    if file is None and cfg.model.path and torch_dist_folder(cfg.model.path):
        if "model_type" in cfg.model.architecture:
            return dict(cfg.model.architecture)
        file = config_file(
            cfg.tokenizer.path
        )  # Megatron's folder does not describe its model; that of its tokenizer may
    if file is None:
        hints = dict(cfg.model.architecture)
        if problems := [f"model.architecture.{problem}" for problem in _wrong_sizes(hints)]:
            raise ModelError(*problems)
        return hints
    try:
        fields = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ModelError(f"{file}: has no model_type; it must be the config.json of a Hugging Face model")
    if problems := [f"{file}: {problem}" for problem in _wrong_sizes(fields)]:
        raise ModelError(*problems)
    return _with_usual_names(fields)


def _with_usual_names(fields: dict[str, Any]) -> dict[str, Any]:
    """The same, beside fields that transformers 5 renamed the names that they have in published files, and beside the
    `attention_head_dim` of Nemotron-H 8B, Nano 9B v2 and Nano 4B the later name of it."""
    kinds = fields.get("layers_block_type")
    if fields["model_type"] == "nemotron_h" and "hybrid_override_pattern" not in fields and isinstance(kinds, list):
        pattern = "".join(HYBRID_KINDS.get(kind, "?") for kind in kinds)
        fields = {**fields, "hybrid_override_pattern": pattern, "num_hidden_layers": len(kinds)}
    if fields["model_type"] == "nemotron_h" and "attention_head_dim" in fields:
        fields = {"head_dim": fields["attention_head_dim"], **fields}
    if "num_local_experts" in fields:
        fields = {"num_experts": fields["num_local_experts"], **fields}
    return fields


def _wrong_sizes(fields: dict[str, Any]) -> Iterator[str]:
    """Numbers of a config.json that are not possible in a model."""
    for key, most in MAX_SIZES.items():
        size = fields.get(key)
        if isinstance(size, bool | str | float) or (isinstance(size, int) and not 1 <= size <= most):
            yield f"{key}={str(size)[:40]} must be a whole number from 1 to {most:,}"
    for place in _with_positions(fields):
        for key in POSITIVE:
            value = place.get(key)
            if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
                yield f"{key}={str(value)[:40]} must be a number above 0"
    chosen, experts = fields.get("num_experts_per_tok"), [fields[key] for key in EXPERT_COUNTS if fields.get(key)]
    if chosen and any(isinstance(chosen, int) and isinstance(count, int) and chosen > count for count in experts):
        yield f"num_experts_per_tok={chosen} must be at most the number of experts, {experts[0]}"


def _with_positions(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The fields, and those of their rotary positions, for each kind of layer where there are several."""
    yield fields
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := fields.get(key), dict):
            yield rope
            yield from (kind for kind in rope.values() if isinstance(kind, dict))


def config_file(path: str | None, revision: str | None = None) -> Path | None:
    """The config.json of a folder, or of a hub id in the local cache; None if there is none."""
    if path is None:
        return None
    local = Path(path).expanduser()
    if local.is_dir():
        file = local / "config.json"
        return file if file.is_file() else megatron_config(local)
    if is_hub_id(path):
        from huggingface_hub import (
            try_to_load_from_cache,
        )  # imported here: it takes 0.1 s that most commands do not need

        cached = try_to_load_from_cache(path, "config.json", revision=revision)
        return Path(cached) if isinstance(cached, str) else None
    return None


def is_hub_id(path: str) -> bool:
    """Whether `path` has the form `owner/name` and is not a local path."""
    owner, slash, name = path.partition("/")
    return (
        bool(slash and owner and name) and "/" not in name and owner not in (".", "..", "~") and not Path(path).exists()
    )


def is_generic(cfg: SftConfig, architecture: dict[str, Any]) -> bool:
    """Whether the model uses transformers' layers (models/hf) instead of an implementation here."""
    family = architecture.get("model_type")
    return cfg.model.generic or (family is not None and family not in FAMILIES)


def is_mixture(architecture: dict[str, Any]) -> bool:
    """Whether the model is a mixture of experts."""
    return any((architecture.get(key) or 0) > 1 for key in EXPERT_COUNTS)


def common_names(architecture: dict[str, Any]) -> dict[str, Any]:
    """The fields with sizes under their usual names (OTHER_NAMES), and usual values for sizes that older families omit."""
    named = dict(architecture)
    for name, others in OTHER_NAMES.items():
        values = [architecture[other] for other in (name, *others) if architecture.get(other) is not None]
        if values:
            named[name] = values[0]
    named.setdefault("num_attention_heads", 1)
    if not is_mixture(named) and "hidden_size" in named:
        named.setdefault("intermediate_size", 4 * named["hidden_size"])
    return named


def length_of_fixed_positions(architecture: dict[str, Any]) -> int | None:
    """Length in tokens up to which RoPE frequencies do not depend on the sequence length; None: no limit (all RoPE types
    except dynamic NTK and longrope)."""
    rope = architecture.get("rope_parameters") or architecture.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) not in ("dynamic", "longrope", "su"):
        return None
    key = "original_max_position_embeddings"
    return int(rope.get(key) or architecture.get(key) or architecture["max_position_embeddings"])


def trained_positions(architecture: dict[str, Any]) -> int | None:
    """How many positions the model was trained for, including those that RoPE scaling adds; None if config.json does not
    state them, or positions are not encoded (Nemotron-H)."""
    most = architecture.get("max_position_embeddings")
    if architecture.get("model_type") == "nemotron_h" or not isinstance(most, int):
        return None
    rope = architecture.get("rope_parameters") or architecture.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        return most
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    scaled = int(original * factor) if isinstance(original, int) and isinstance(factor, int | float) else 0
    return max(most, scaled)
