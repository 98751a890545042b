"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sft_hydra.config.schema import LoraConfig
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import LoraLinear
from sft_hydra.models.names import disk_rows, rows_from_disk, rows_to_disk

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def write_adapter(model: DecoderModel, lora: LoraConfig, base: str, folder: Path) -> int:
    """Write the model's adapters for the base model at `base` (a folder or hub id). Returns the number of tensors."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
        rows = disk_rows(model.config, f"{name}.lora_B")
        lora_B = layer.lora_B.detach().cpu()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = lora_B.contiguous() if rows is None else rows_to_disk(lora_B, rows)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
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
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return len(tensors)


def limits(model: DecoderModel) -> str | None:
    """What of the model's adapters the peft library cannot load; None: it loads them all."""
    adapted = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    if model.config.model_type == "nemotron_h" and "out_proj" in adapted:
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
