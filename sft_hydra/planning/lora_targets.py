"""Which linear layers LoRA acts on, and with which rank and scale: by the names of layers alone, so that a plan knows it too."""

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

from sft_hydra.errors import ConfigError
from sft_hydra.schema.peft import LoraConfig

ALIASES = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"),
    "linear_proj": ("o_proj", "dense"),
    "linear_fc1": ("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h"),
    "linear_fc2": ("down_proj", "fc2", "c_proj", "dense_4h_to_h"),
}
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"  # beside an embedding or head of which some rows are trained
PART = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_A_start|lora_B_start|lora_magnitude_vector|token_adapter\.trainable_tokens_delta)(?:\.weight)?"
)
EXPERTS = ".experts."  # in names of what belongs to routed experts: adapted only where a pattern names them

Value = TypeVar("Value", int, float)


def usual_targets(names: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Layers that are adapted by default: those of these kinds, except in routed experts."""
    return [name for name in names if EXPERTS not in name and name.rpartition(".")[2] in kinds]


def starts_from_weight(lora: LoraConfig) -> bool:
    """Whether A and B start from the weight (PiSSA, OLoRA)."""
    return lora.init_lora_weights not in (None, "gaussian")


def adapter_part(name: str) -> tuple[str, str] | None:
    """(layer, `lora_A`, `lora_B`, `lora_magnitude_vector`, TOKEN_ROWS, ...) of an adapter's tensor, in a model or in PEFT's
    file; None: another kind of tensor."""
    found = PART.fullmatch(name)
    return (found[1], found[2]) if found else None


def layer_lora(lora: LoraConfig, name: str) -> LoraConfig:
    """The options of one layer: its own rank and alpha where a pattern names it."""
    return replace(
        lora, dim=_of_layer(lora.rank_pattern, name, lora.dim), alpha=_of_layer(lora.alpha_pattern, name, lora.alpha)
    )


def _of_layer(patterns: dict[str, Value], name: str, usual: Value) -> Value:
    """As PEFT reads them: the first pattern, a regular expression, that is the end of the name from some dot on."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), usual)


def choose(names: list[str], lora: LoraConfig, usual: list[str]) -> list[str]:
    """Which of these linear layers get an adapter; `usual` are the default ones. ConfigError for patterns that
    match none of them, and for more than plain LoRA on routed experts."""
    chosen = _chosen(names, lora, usual)
    not_theirs = "peft.use_dora=true" if lora.use_dora else f"peft.init_lora_weights={lora.init_lora_weights}"
    if (lora.use_dora or starts_from_weight(lora)) and any(EXPERTS in name for name in chosen):
        raise ConfigError(
            f"{not_theirs}: routed experts can have plain LoRA adapters only, as in the peft library; leave them out of the "
            "targets (peft.exclude_modules=['*.experts.*']), or leave it out"
        )
    return chosen


def _chosen(names: list[str], lora: LoraConfig, usual: list[str]) -> list[str]:
    if lora.match_all_linear:
        return names
    if lora.target_modules and lora.exclude_modules:
        raise ConfigError(
            "peft.target_modules and peft.exclude_modules are both set: give the targets, or what is left out of all"
        )
    if lora.exclude_modules:
        excluded = _matching(names, lora.exclude_modules, "peft.exclude_modules")
        return [name for name in names if name not in excluded]
    if not lora.target_modules:
        return usual
    targets = _matching(names, lora.target_modules, "peft.target_modules")
    return [name for name in names if name in targets]


def _matching(names: list[str], patterns: list[str], key: str) -> set[str]:
    found: set[str] = set()
    problems = []
    for pattern in patterns:
        matches = {name for name in names for p in _expand(pattern) if _fits(name, p)}
        if not matches:
            kinds = sorted({name.rpartition(".")[2] for name in names})
            problems.append(f"{key}: {pattern!r} matches no linear layer of this model; it has: {', '.join(kinds)}")
        found |= matches
    if problems:
        raise ConfigError(*problems)
    return found


def _expand(pattern: str) -> list[str]:
    """The pattern, with a last part from Megatron's names replaced by Hugging Face's."""
    head, dot, leaf = pattern.rpartition(".")
    return [head + dot + name for name in ALIASES.get(leaf, (leaf,))]


def fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern, whose last part may be one of Megatron's names."""
    return any(_fits(name, expanded) for expanded in _expand(pattern))


def _fits(name: str, pattern: str) -> bool:
    """A pattern is the whole name, or the end of it from some dot on; * matches any text."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, "*." + pattern)
