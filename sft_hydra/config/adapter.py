"""A LoRA adapter in PEFT's format as `peft.path`: its options and adapted layers, read without torch.

No field is ignored silently: unknown and unsupported fields are errors. The adapted layers are taken from the tensor names,
because target patterns (a list, a regular expression, `all-linear`, some layers only) depend on how the peft library
resolved them.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_hydra.errors import ConfigError
from sft_hydra.planning.lora_targets import TOKEN_ROWS, adapter_part
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.peft import LoraConfig

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
EXPERTS, INNER = ".experts", ".base_layer"  # PEFT wraps the parameters of a module in turn, the first innermost
LAST_EXPERTS, FIRST_EXPERTS = "down_proj", ("gate_up_proj", "up_proj")

READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern",
        "base_model_name_or_path", "target_parameters", "bias", "modules_to_save", "trainable_token_indices", "ensure_weight_tying", "use_dora", "init_lora_weights", "fan_in_fan_out", "task_type")  # fmt: skip
# Fields implied by the tensors, about initialization or the training environment, or used only with unsupported fields.
WITHOUT_EFFECT = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "auto_mapping", "peft_version",
    "revision", "inference_mode", "megatron_core", "qalora_group_size", "runtime_config",
    "eva_config", "lora_ga_config", "corda_config", "loftq_config",
)  # fmt: skip
TABLES = {
    "embed_tokens": ("embed_tokens", "embeddings", "wte", "embed_in", "word_embeddings"),
    "lm_head": ("lm_head", "embed_out"),
}  # what modules of transformers call embedding and head
KEEP_THE_BASE = (
    True,
    False,
    None,
    "gaussian",
    "eva",
    "orthogonal",
)  # other initializations also change the base weights
WHY = {
    "lora_bias": "B has a bias",
    "layer_replication": "layers are repeated",
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """`layers` are our names of those that have one -> `lora_A`, `lora_B` and with DoRA `lora_magnitude_vector` -> its name
    in the file."""

    folder: Path
    fields: dict[str, Any]
    layers: dict[str, dict[str, str]]
    tables: dict[str, str]  # our names of embedding and head, or of their TOKEN_ROWS, in it -> name in the file
    token_ids: tuple[int, ...]  # tokens of these rows

    @property
    def base(self) -> str | None:
        """The base model in its config; if that is a folder that does not exist, `base` beside the adapter."""
        named = self.fields.get("base_model_name_or_path")
        beside = self.folder / "base"
        if (beside / "config.json").is_file() and not (named and Path(named).expanduser().is_dir()):
            return str(beside)
        return named

    @property
    def options(self) -> dict[str, Any]:
        """Its options as fields of LoraConfig."""
        return {
            "dim": int(self.fields["r"]),
            "alpha": float(self.fields["lora_alpha"]),
            "modules_to_save": [name for name, kinds in TABLES.items() if self._trains(kinds)],
            "trainable_new_tokens": bool(self.token_ids),
            "use_dora": bool(self.fields.get("use_dora")),
            "rank_stabilized": bool(self.fields.get("use_rslora")),
            "rank_pattern": {str(key): int(rank) for key, rank in (self.fields.get("rank_pattern") or {}).items()},
            "alpha_pattern": {
                str(key): float(alpha) for key, alpha in (self.fields.get("alpha_pattern") or {}).items()
            },
            "target_modules": list(self.layers),
            "exclude_modules": None,
            "match_all_linear": False,
        }

    def _trains(self, kinds: tuple[str, ...]) -> bool:
        """Whether a table of this name is there as a whole; a head that is the embedding is not listed beside it."""
        tied = self.fields.get("ensure_weight_tying") and "lm_head" in kinds
        return not tied and any(name.endswith(f"{kind}.weight") for name in self.tables for kind in kinds)


def is_adapter_folder(path: str) -> bool:
    """Whether `path` holds an adapter but not a full model."""
    folder = Path(path).expanduser()
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(path: str) -> Adapter:
    """The adapter in the folder `path`. ConfigError lists everything that is missing or unsupported."""
    folder = Path(path).expanduser()
    where = f"peft.path={path}"
    if not folder.is_dir():
        raise ConfigError(
            f"{where}: no such folder; download an adapter from the hub first (hf download <id> --local-dir <folder>)"
        )
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{where}: has no {CONFIG}; it is not an adapter in PEFT's format") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {CONFIG} cannot be read ({error})") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: {CONFIG} is not a JSON object")
    if problems := list(_problems(where, fields)):
        raise ConfigError(*problems)
    if not (folder / WEIGHTS).is_file():
        pickle = (
            f"; {PICKLE} is a pickle, which is not supported: save it with safe_serialization=True"
            if (folder / PICKLE).is_file()
            else ""
        )
        raise ConfigError(f"{where}: has no {WEIGHTS}{pickle}")
    layers, tables = _layers(where, folder, fields)
    return Adapter(folder, fields, layers, tables, _token_ids(where, fields))


def _token_ids(where: str, fields: dict[str, Any]) -> tuple[int, ...]:
    """Those of `trainable_token_indices`: a list, or one for each table. ConfigError if they differ."""
    indices = fields.get("trainable_token_indices") or []
    lists = list(indices.values()) if isinstance(indices, dict) else [indices]
    if any(ids != lists[0] for ids in lists):
        raise ConfigError(
            f"{where}: trainable_token_indices in {CONFIG} names different tokens for each table, which is not supported; merge it "
            "with peft"
        )
    return tuple(int(id_) for id_ in lists[0]) if lists else ()


def _problems(where: str, fields: dict[str, Any]) -> Iterator[str]:
    kind = fields.get("peft_type")
    if kind != "LORA":
        yield f"{where}: peft_type={kind} is not LORA; only LoRA adapters are supported"
        return
    for key in ("r", "lora_alpha"):
        if not isinstance(fields.get(key), int | float) or isinstance(fields[key], bool) or fields[key] <= 0:
            yield f"{where}: {key}={fields.get(key)} in {CONFIG} must be a positive number"
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = fields.get(key) or {}
        if not isinstance(patterns, dict) or not all(
            isinstance(value, int | float) and value > 0 for value in patterns.values()
        ):
            yield f"{where}: {key} in {CONFIG} must map patterns to positive numbers"
    if fields.get("task_type") not in (None, "CAUSAL_LM"):
        yield f"{where}: task_type={fields['task_type']} is not CAUSAL_LM"
    if fields.get("bias", "none") != "none":
        yield f"{where}: bias={fields['bias']} is not supported, because it also trains biases of the base; use bias=none"
    start = fields.get("init_lora_weights")
    if start not in KEEP_THE_BASE:
        yield (
            f"{where}: init_lora_weights={start} is not supported: it changes the base weights, which are not in the "
            "adapter; convert it to a plain LoRA (path_initial_model_for_weight_conversion of peft's save_pretrained)"
        )
    for key, value in fields.items():
        if key not in READ and key not in WITHOUT_EFFECT and value:
            why = f": {WHY[key]}" if key in WHY else ""
            yield f"{where}: {key}={json.dumps(value)[:80]} in {CONFIG} is not supported{why}; merge it with peft, or train without it"


def _layers(where: str, folder: Path, fields: dict[str, Any]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Our names of the adapted layers -> the parts of each -> names in the file; and of embedding and head -> names there."""
    names = _tensor_names(where, folder / WEIGHTS)
    found: dict[str, dict[str, str]] = {}
    problems = []
    expected = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if fields.get("use_dora") else set())
    tables = {table: name for name in names if (table := _our_table(name, fields))}
    for name in names:
        if name in tables.values():
            continue
        layer, part = adapter_part(name) or ("", "")
        if not (name.startswith(PREFIX) and part in expected):
            problems.append(
                f"{where}: {name} in {WEIGHTS} is not one of {', '.join(sorted(expected))} of a layer and is not supported"
            )
            continue
        found.setdefault(layer, {})[part] = name
    problems += [
        f"{where}: {layer} has only {' and '.join(sorted(parts))} in {WEIGHTS}; "
        f"{' and '.join(sorted(expected - parts.keys()))} is missing"
        for layer, parts in found.items()
        if parts.keys() != expected
    ]
    if problems:
        raise ConfigError(*problems[:20])
    if not found:
        raise ConfigError(f"{where}: {WEIGHTS} contains no LoRA tensors")
    layers = {_our_layer(layer.removeprefix(PREFIX), found, fields): parts for layer, parts in found.items()}
    return layers, tables


def _our_table(name: str, fields: dict[str, Any]) -> str | None:
    """Our name of an embedding or head in the file, or of its rows; None for other tensors and those that are not trained."""
    for end, key in ((f".{TOKEN_ROWS}", "trainable_token_indices"), (".weight", "modules_to_save")):
        module = name.removeprefix(PREFIX).removesuffix(end)
        known = any(module.rpartition(".")[2] in kinds for kinds in TABLES.values())
        if known and name == f"{PREFIX}{module}{end}" and fields.get(key):
            return ("model.embed_tokens" if module.endswith(".embeddings") else module) + end  # Nemotron-H's
    return None


def _our_layer(layer: str, all_layers: dict[str, Any], fields: dict[str, Any]) -> str:
    if layer.startswith("backbone."):  # as Nemotron-H's own code calls its trunk
        layer = "model." + layer.removeprefix("backbone.")
    experts = layer.removesuffix(INNER)
    if not experts.endswith(EXPERTS):
        return layer
    targets = [str(target).rpartition(".")[2] for target in fields.get("target_parameters") or ()]
    first = next((kind for kind in FIRST_EXPERTS if kind in targets), FIRST_EXPERTS[0])
    if layer.endswith(INNER):
        return f"{experts}.{first}"
    both = any(other.endswith(f"{experts}{INNER}") for other in all_layers)
    return f"{experts}.{LAST_EXPERTS if both or LAST_EXPERTS in targets else first}"


def _tensor_names(where: str, file: Path) -> list[str]:
    """Tensor names and shapes from a safetensors header: its length in eight bytes, then JSON."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            head = json.loads(opened.read(length))
        return sorted(name for name in head if name != "__metadata__")
    except (OSError, ValueError, struct.error, TypeError) as error:
        raise ConfigError(f"{where}: {WEIGHTS} cannot be read as safetensors ({error})") from None


def adopt_adapter(cfg: SftConfig, typed: list[str]) -> list[str]:
    """Fill in the options of the adapter in `peft.path`, in place, and its base and tokenizer where the config sets none.
    Returns a message for each typed key that contradicts the adapter."""
    if cfg.peft is None or cfg.peft.path is None:
        return []
    try:
        adapter = read_adapter(cfg.peft.path)
    except ConfigError as error:
        return list(error.problems)
    problems, usual = [], LoraConfig()
    for key, value in adapter.options.items():
        configured = getattr(cfg.peft, key)
        if configured != value and (configured != getattr(usual, key) or f"peft.{key}" in typed):
            shown = f"{len(value)} layers" if key == "target_modules" else value
            problems.append(
                f"peft.{key}={configured}: the adapter in peft.path={cfg.peft.path} has {shown}; remove peft.{key}"
            )
        setattr(cfg.peft, key, value)
    if "peft.dropout" not in typed and cfg.peft.dropout == usual.dropout:
        cfg.peft.dropout = float(adapter.fields.get("lora_dropout") or 0.0)
    if cfg.model.path is None and cfg.checkpoint.load is None:
        if not adapter.base:
            problems.append(
                f"peft.path={cfg.peft.path}: {CONFIG} names no base model; set model.path=<folder or hub id>"
            )
        else:
            cfg.model.path = adapter.base
            if cfg.model.name == "hf" and "model.name" not in typed:
                cfg.model.name = Path(adapter.base).name
            if cfg.tokenizer.path in (None, "demo") and "tokenizer.path" not in typed:
                own = (adapter.folder / "tokenizer.json").is_file()
                cfg.tokenizer.path = str(adapter.folder) if own else None
    if adapter.token_ids and not (cfg.tokenizer.add_tokens or cfg.tokenizer.add_special_tokens):
        problems += _adopt_tokens(cfg, adapter)
    return problems


def _adopt_tokens(cfg: SftConfig, adapter: Adapter) -> list[str]:
    """Name the tokens whose rows the adapter holds, by the tokenizer beside it. Returns the problems."""
    file = adapter.folder / "tokenizer.json"
    try:
        added = {token["id"]: token for token in json.loads(file.read_text(encoding="utf-8"))["added_tokens"]}
        tokens = [added[id_] for id_ in adapter.token_ids]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [
            f"peft.path={cfg.peft.path if cfg.peft else None}: {CONFIG} trains the tokens {list(adapter.token_ids)[:20]}, which "
            f"are not added tokens of {file} ({error!r}); save the tokenizer that has them beside the adapter"
        ]
    cfg.tokenizer.add_tokens = [token["content"] for token in tokens if not token.get("special")]
    cfg.tokenizer.add_special_tokens = [token["content"] for token in tokens if token.get("special")]
    return []
