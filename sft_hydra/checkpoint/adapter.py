"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Owns the difference between our adapters and PEFT's: rows of some layers lie in another order, and adapters of all routed
experts of a layer, three-dimensional here, are two-dimensional there and adapt a parameter instead of a module.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sft_hydra.checkpoint.hf_shards import METADATA
from sft_hydra.models.state_dict_map import disk_rows, rows_from_disk, rows_to_disk
from sft_hydra.schema.config import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
EXPERTS = ".experts."
LAST_EXPERTS = ".experts.down_proj"  # PEFT wraps the parameters of a module in turn, the first innermost

Tensors = dict[str, torch.Tensor]


def write_adapter(config: Any, adapters: Tensors, lora: LoraConfig, base: str, folder: Path) -> int:
    """Write adapters, named as ours, for the base model at `base` (a folder or hub id). Returns the number of tensors."""
    layers = {name.rpartition(".")[0] for name in adapters}
    tensors = {}
    for name, factor in adapters.items():
        tensors[_peft_name(name, layers)] = _to_peft(config, name, factor.detach().cpu())
    save_file(tensors, folder / WEIGHTS, metadata=METADATA)
    parameters = sorted(layer for layer in layers if EXPERTS in layer)
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.dim,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0 if parameters else lora.dropout,  # PEFT has none on parameters, and serving has none at all
        "use_rslora": lora.rank_stabilized,
        "target_modules": sorted(layers.difference(parameters)),
        "target_parameters": parameters or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
    return len(tensors)


def _peft_name(name: str, layers: set[str]) -> str:
    """The name in PEFT's file of one of our adapter's matrices; `layers` are all that have adapters."""
    layer, _, factor = name.rpartition(".")
    if EXPERTS in layer:
        experts = layer.rpartition(".")[0]
        both = sum(other.startswith(experts + ".") for other in layers) > 1
        layer = f"{experts}.base_layer" if both and not layer.endswith(LAST_EXPERTS) else experts
    return f"{PREFIX}{layer}.{factor}.weight"


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
    """What of adapters, named as ours, the peft library cannot load; None: it loads them all."""
    if config.model_type == "nemotron_h" and any(".out_proj." in name for name in adapters):
        return "the peft library refuses adapters on Mamba's out_proj; export.merge=true writes the merged model"
    return None


def merge_adapter(config: Any, folder: Path, base: Tensors) -> Tensors:
    """The base's weights (named and ordered as ours) with the adapter in `folder` merged in, from its files alone."""
    adapter = json.loads((folder / CONFIG).read_text())
    scale = adapter["lora_alpha"] / (math.sqrt(adapter["r"]) if adapter["use_rslora"] else adapter["r"])
    factors = load_file(folder / WEIGHTS)
    layers = {*adapter["target_modules"], *(adapter["target_parameters"] or ())}
    merged = dict(base)
    for layer in sorted(layers):
        weight = base[f"{layer}.weight"]
        a, b = (
            _from_peft(config, name, factors[_peft_name(name, layers)], len(weight))
            for name in (f"{layer}.lora_A", f"{layer}.lora_B")
        )
        merged[f"{layer}.weight"] = (weight.float() + scale * (b @ a).to(weight.device)).to(weight.dtype)
    return merged
