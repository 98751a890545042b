"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Converts between our adapters and PEFT's: rows of some layers are in another order, and adapters of all routed experts of a
layer are three-dimensional here, but in PEFT two-dimensional and attached to a parameter instead of a module.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sft_hydra.checkpoint.adapter_tables import fields_of_tables, load_tables, merge_tables, tables_to_peft
from sft_hydra.checkpoint.hf_shards import METADATA
from sft_hydra.config.adapter import CONFIG, PREFIX, WEIGHTS, read_adapter
from sft_hydra.errors import ModelError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import merged_weight
from sft_hydra.models.lora_layers import Adapter, joined, scale_of
from sft_hydra.models.state_dict_map import disk_rows, rows_from_disk, rows_to_disk
from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.parallel.dtensor import copy_shard_
from sft_hydra.planning.lora_targets import EXPERTS, TOKEN_ROWS, adapter_part, layer_lora
from sft_hydra.schema.peft import LoraConfig

LAST_EXPERTS = ".experts.down_proj"  # PEFT wraps the parameters of a module in turn, the first innermost

Tensors = dict[str, torch.Tensor]


def write_adapter(
    config: Any, adapters: Tensors, lora: LoraConfig, base: str, folder: Path, token_ids: tuple[int, ...] = ()
) -> int:
    """Write adapters (with parameter names of sft_hydra) for the base model at `base` (a folder or hub id), with the trained
    embedding and head or, if only rows are trained, the rows of `token_ids`. Returns the number of tensors."""
    parts = {name: found for name in adapters if (found := adapter_part(name)) and found[1] != TOKEN_ROWS}
    named = {found: adapters[name] for name, found in parts.items()}
    if any(part == "lora_A_start" for _, part in named):
        named, lora = _as_plain_lora(named, lora)
    layers = {layer for layer, _ in named}
    tensors = tables_to_peft(config, adapters)
    for (layer, part), tensor in named.items():
        tensors[_peft_name(layer, part, layers)] = _to_peft(config, f"{layer}.{part}", tensor.detach().cpu())
    save_file(tensors, folder / WEIGHTS, metadata=METADATA)
    parameters = sorted(layer for layer in layers if EXPERTS in layer)
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.dim,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0
        if parameters
        else lora.dropout,  # PEFT does not support dropout on parameters; serving never uses it
        "use_dora": lora.use_dora,
        "use_rslora": lora.rank_stabilized,
        "rank_pattern": lora.rank_pattern,
        "alpha_pattern": lora.alpha_pattern,
        "target_modules": sorted(layers.difference(parameters)),
        "target_parameters": parameters or None,
        **fields_of_tables(config, adapters, token_ids),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
    return len(tensors)


def _as_plain_lora(
    named: dict[tuple[str, str], torch.Tensor], lora: LoraConfig
) -> tuple[dict[tuple[str, str], torch.Tensor], LoraConfig]:
    """Adapters that start from the weight (PiSSA, OLoRA), as a LoRA of twice the rank on the unchanged base: the product of their
    values minus the product of their initial values."""
    plain = {key: tensor for key, tensor in named.items() if not key[1].endswith("_start")}
    for layer in {layer for layer, _ in named}:
        a, b, *start = (named[layer, part] for part in ("lora_A", "lora_B", "lora_A_start", "lora_B_start"))
        plain[layer, "lora_A"], plain[layer, "lora_B"] = joined(a, b, *start)
    grows = math.sqrt(2) if lora.rank_stabilized else 2  # so that the scale stays
    return plain, replace(
        lora,
        dim=2 * lora.dim,
        alpha=grows * lora.alpha,
        rank_pattern={key: 2 * rank for key, rank in lora.rank_pattern.items()},
        alpha_pattern={key: grows * alpha for key, alpha in lora.alpha_pattern.items()},
    )


def _peft_name(layer: str, part: str, layers: set[str]) -> str:
    """The name in PEFT's file of a part of one of our adapters; `layers` are all that have adapters."""
    if EXPERTS in layer:
        experts = layer.rpartition(".")[0]
        both = sum(other.startswith(experts + ".") for other in layers) > 1
        layer = f"{experts}.base_layer" if both and not layer.endswith(LAST_EXPERTS) else experts
    return f"{PREFIX}{layer}.{part}" + ("" if part == "lora_magnitude_vector" else ".weight")


def _to_peft(config: Any, name: str, factor: torch.Tensor) -> torch.Tensor:
    if factor.ndim == 3:  # A (experts, dim, in), B (experts, out, dim)
        return (factor.flatten(0, 1) if name.endswith("lora_A") else factor.permute(1, 2, 0).flatten(1)).contiguous()
    rows = disk_rows(config, name)
    return factor.contiguous() if rows is None else rows_to_disk(factor, rows)


def _from_peft(config: Any, name: str, factor: torch.Tensor, experts: int) -> torch.Tensor:
    if EXPERTS in name:
        if name.endswith("lora_A"):
            return factor.unflatten(0, (experts, -1))
        return factor.unflatten(1, (-1, experts)).permute(2, 0, 1)
    rows = disk_rows(config, name)
    return factor if rows is None else rows_from_disk(factor, rows)


def limits(config: Any, adapters: Tensors) -> str | None:
    """A note for the user if the peft library cannot load these adapters (with our names); else None."""
    if config.model_type == "nemotron_h" and any(".out_proj." in name for name in adapters):
        return "the peft library does not load adapters on Mamba's out_proj; export.merge=true writes the merged model"
    return None


def merge_adapter(config: Any, folder: Path, base: Tensors) -> Tensors:
    """The base's weights (named and ordered as ours) with the adapter in `folder` merged in, from its files alone."""
    adapter = read_adapter(str(folder))
    lora, factors = LoraConfig(**adapter.options), _factors(folder)
    merged = dict(base)
    for layer, names in sorted(adapter.layers.items()):
        weight = base[f"{layer}.weight"]
        parts = {
            part: _from_peft(config, f"{layer}.{part}", factors[name].float(), len(weight)).to(weight.device)
            for part, name in names.items()
        }
        merged[f"{layer}.weight"] = merged_weight(weight, scale=scale_of(layer_lora(lora, layer)), **parts)
    merge_tables(config, adapter, factors, merged)
    return merged


@torch.no_grad()
def load_adapter(model: DecoderModel, path: str) -> None:
    """Load the adapter in the folder `path` into a model with adapters on the same layers. ModelError if layers or shapes differ."""
    adapter = read_adapter(path)
    factors = _factors(adapter.folder)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}
    there = {name for names in all_gather_objects(list(modules), model.mesh) for name in names}
    problems = [
        f"{path}: {layer} is adapted, but this model has no such layer" for layer in adapter.layers.keys() - there
    ]
    for layer, module in modules.items():
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        own = {found[1]: p for key, p in module.named_parameters(layer) if (found := adapter_part(key))}
        for kind, parameter in own.items():
            name = adapter.layers[layer][kind]
            value = factors[name].float()
            shape = value.shape
            if _fits_experts(value, parameter):
                value = _from_peft(model.config, f"{layer}.{kind}", value, len(weight))
            if value.shape != parameter.shape:
                problems.append(
                    f"{path}: {name} has shape {tuple(shape)}, but {layer}.{kind} of this model has {tuple(parameter.shape)}"
                )
                continue
            copy_shard_(parameter, value)
    problems += load_tables(model, adapter, factors)
    if problems:
        raise ModelError(*sorted(problems)[:20])


def _fits_experts(value: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Whether a matrix of the file can be split into those of the experts; always true for other layers."""
    return parameter.ndim < 3 or value.numel() == parameter.numel()


def _factors(folder: Path) -> Tensors:
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS}: cannot be read as safetensors ({error})") from None
