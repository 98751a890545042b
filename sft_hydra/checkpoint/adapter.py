"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sft_hydra.config.schema import LoraConfig
from sft_hydra.models.names import disk_rows, rows_from_disk, rows_to_disk

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def write_adapter(config: Any, adapters: dict[str, torch.Tensor], lora: LoraConfig, base: str, folder: Path) -> int:
    """Write adapters, named as ours, for the base model at `base` (a folder or hub id). Returns the number of tensors."""
    tensors = {}
    for name, factor in adapters.items():
        rows = disk_rows(config, name)
        tensors[f"{PREFIX}{name}.weight"] = (
            factor.detach().cpu().contiguous() if rows is None else rows_to_disk(factor.detach().cpu(), rows)
        )
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    layers = {name.rpartition(".")[0] for name in adapters}
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.dim,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilized,
        "target_modules": sorted(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
    return len(tensors)


def limits(config: Any, adapters: dict[str, torch.Tensor]) -> str | None:
    """What of adapters, named as ours, the peft library cannot load; None: it loads them all."""
    if config.model_type == "nemotron_h" and any(".out_proj." in name for name in adapters):
        return "the peft library refuses adapters on Mamba's out_proj; export.merge=true writes the merged model"
    return None


def merge_adapter(config: Any, folder: Path, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base's weights (named and ordered as ours) with the adapter in `folder` merged in, from its files alone."""
    adapter = json.loads((folder / CONFIG).read_text())
    scale = adapter["lora_alpha"] / (math.sqrt(adapter["r"]) if adapter["use_rslora"] else adapter["r"])
    factors = load_file(folder / WEIGHTS)
    merged = dict(base)
    for name in adapter["target_modules"]:
        weight = base[f"{name}.weight"]
        a, b = (factors[f"{PREFIX}{name}.{factor}.weight"] for factor in ("lora_A", "lora_B"))
        rows = disk_rows(config, f"{name}.lora_B")
        b = b if rows is None else rows_from_disk(b, rows)
        merged[f"{name}.weight"] = (weight.float() + scale * (b @ a).to(weight.device)).to(weight.dtype)
    return merged
