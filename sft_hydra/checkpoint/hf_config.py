"""Writes config.json and generation_config.json of an export so that transformers 4, transformers 5 and servers read them.

transformers 5 renamed fields, and a reader silently uses the default for a field it does not know, so both names are written.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.checkpoint.load_hf_weights import local_folder
from sft_hydra.errors import ModelError
from sft_hydra.models.build import transformers_class
from sft_hydra.schema.model import ModelConfig

GENERATION_FILE = "generation_config.json"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
FIRST = ("do_sample", "num_beams")  # fields that others depend on
IN_OLD_CONFIGS = ("repetition_penalty", "max_length", "min_length", "no_repeat_ngram_size", "length_penalty")
NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
ROPE_OF_FAMILY = {
    "gpt_neox": NEOX,
    "gpt_neox_japanese": NEOX,
    "modernbert-decoder": {"rope_theta": "global_rope_theta"},
}
LOCAL_THETA = {"modernbert-decoder": "local_rope_theta"}  # of layers with a window
OLMO: dict[str, tuple[str, ...]] = {"linear": ("factor",), "dynamic": ("factor",)}
SCALING_OF_FAMILY: dict[str, dict[str, tuple[str, ...]]] = {
    "phi3": {"longrope": ("short_factor", "long_factor")},
    "olmo": OLMO,
    "olmo2": OLMO,
}  # RoPE types that transformers 4 supports for these families, with their fields besides `type`
HYBRID = ("num_hidden_layers", "hybrid_override_pattern", "mtp_hybrid_override_pattern")  # of Nemotron-H


def write_config(config: Any, dtype: torch.dtype, tokenizer: ChatTokenizer, folder: Path) -> None:
    """Write `config.json` for weights in `dtype`, with the tokenizer's special ids."""
    config = copy.deepcopy(config)
    config.architectures = [transformers_class(config).__name__]
    config.dtype = dtype
    config.__dict__.pop("auto_map", None)  # names code that is not part of the export
    for name in config._get_generation_parameters():  # which go into generation_config.json
        config.__dict__.pop(name, None)
    for kind in ("bos", "eos", "pad"):
        setattr(config, f"{kind}_token_id", getattr(tokenizer, f"{kind}_id"))
    (folder / "config.json").write_text(json.dumps(with_old_names(config), indent=2, sort_keys=True) + "\n")


def with_old_names(config: Any) -> dict[str, Any]:
    """Fields of a config.json as transformers 5 writes them, plus the old name of each renamed field."""
    fields = json.loads(config.to_json_string(use_diff=True))
    if "dtype" in fields:
        fields["torch_dtype"] = fields["dtype"]
    if config.attribute_map.get("num_experts") in fields:
        fields["num_experts"] = fields[config.attribute_map["num_experts"]]
    if config.model_type == "nemotron_h":
        fields |= {name: getattr(config, name) for name in HYBRID}
        if tuple(config.time_step_limit) == (0.0, math.inf):  # the default everywhere, and not a number in JSON
            del fields["time_step_limit"]
    return fields | _old_rope(fields)


def _old_rope(fields: dict[str, Any]) -> dict[str, Any]:
    """RoPE fields for transformers 4."""
    rope = fields.get("rope_parameters")
    if not rope:
        return {}
    family = fields.get("model_type", "")
    local = rope.get("sliding_attention")
    if "full_attention" in rope:
        rope = rope["full_attention"]
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    old: dict[str, Any] = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    old |= {name: rope[key] for key, name in ROPE_OF_FAMILY.get(family, {}).items() if key in rope}
    if isinstance(local, dict):
        old[LOCAL_THETA.get(family, "rope_local_base_freq")] = local["rope_theta"]
    kind = scaling.get("rope_type", "default")
    if kind == "longrope" and "original_max_position_embeddings" in scaling:
        old["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    kinds = SCALING_OF_FAMILY.get(family)
    if kind == "default":
        old["rope_scaling"] = None
    elif kinds is None or kind in kinds:
        taken = scaling if kinds is None else {key: scaling[key] for key in kinds[kind]}
        old["rope_scaling"] = {**taken, "type": kind}
    return old


def generation_config(source: ModelConfig, tokenizer: ChatTokenizer) -> tuple[Any, list[str]]:
    """(the source model's generation config, a line per change for the user). End-of-turn ids are first in eos_token_id; ends of
    turns that are not one token are in stop_strings.
    Contradictory fields, which transformers does not write, are removed. ModelError if the source file cannot be read."""
    from transformers import GenerationConfig

    fields, file = _source_fields(source)
    fields = {key: value for key, value in fields.items() if value is not None and not key.startswith("_")}
    notes = []
    sampling = [key for key in SAMPLING if key in fields]
    if "do_sample" not in fields and sampling and _contradicts(GenerationConfig(), fields, sampling):
        fields["do_sample"] = True
        notes.append(f"{file}: added do_sample=true; {', '.join(sampling)} would have no effect without it")
    config = GenerationConfig()
    for key in sorted(fields, key=lambda name: name not in FIRST):
        if key in ("transformers_version", "pad_token_id", "bos_token_id", "eos_token_id"):
            continue
        before = copy.deepcopy(config)
        setattr(config, key, fields[key])
        if problem := _problem(config):
            config = before
            notes.append(f"{file}: {key}={fields[key]} is not written to exports ({problem})")
    eos = fields.get("eos_token_id")
    known = eos if isinstance(eos, list) else [eos]
    stops = [*tokenizer.end_of_turn_ids, tokenizer.eos_id, *known]
    config.eos_token_id = list(dict.fromkeys(i for i in stops if i is not None))
    if strings := tokenizer.end_of_turn_strings:
        config.stop_strings = list(dict.fromkeys([*_listed(fields.get("stop_strings")), *strings]))
        shown = ", ".join(map(repr, strings))
        notes.append(
            f"exports: {shown} ends a turn but is not one token, so generation_config.json has it in stop_strings"
        )
    config.bos_token_id, config.pad_token_id = tokenizer.bos_id, tokenizer.pad_id
    return config, notes


def _listed(value: str | list[str] | None) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


def _source_fields(source: ModelConfig) -> tuple[dict[str, Any], str]:
    """(generation fields, file): from generation_config.json of the source model, else from config.json, as in older models."""
    if source.path is None:
        return {}, ""
    folder = local_folder(source.path, source.revision)
    file = next((folder / name for name in (GENERATION_FILE, "config.json") if (folder / name).is_file()), None)
    if file is None:
        return {}, ""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read ({error}); fix or delete it") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{file}: is not a JSON object; fix or delete it")
    if file.name == "config.json":
        fields = {key: value for key, value in fields.items() if key in (*FIRST, *SAMPLING, *IN_OLD_CONFIGS)}
    return fields, str(file)


def _contradicts(empty: Any, fields: dict[str, Any], keys: list[str]) -> bool:
    for key in keys:
        setattr(empty, key, fields[key])
    return _problem(empty) is not None


def _problem(config: Any) -> str | None:
    """The reason why transformers would not write this generation config; None if it would."""
    try:
        config.validate(strict=True)
    except (ValueError, TypeError, AttributeError) as error:
        lines = [line.strip("- ").strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("`")), lines[0] if lines else type(error).__name__)
    return None
