"""Models on a quantized base, made of the weights in a folder."""

import json
from pathlib import Path
from typing import Any

import torch
from support.packed import make_model, oracle_of

from sft_hydra.checkpoint.load_hf_weights import load_weights
from sft_hydra.engine.materialize import materialize_on_mesh
from sft_hydra.models.build import build_model
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import add_adapters
from sft_hydra.models.quantized_linear import quantize_linears
from sft_hydra.parallel.dtensor import copy_shard_, full_tensor
from sft_hydra.planning.layout import Layout
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import TrainConfig


def saved(architecture: dict[str, Any], folder: Path) -> Path:
    """A folder with a random model, written by transformers."""
    oracle_of(make_model(architecture)).save_pretrained(folder)
    return folder


def quantized(folder: Path, kind: str, lora: LoraConfig | None = None, layout: Layout | None = None) -> DecoderModel:
    """The model in `folder` with linear layers in `kind`, and random adapters."""
    model = build_model(json.loads((folder / "config.json").read_text()), "meta", torch.float32)
    quantize_linears(model, kind)
    if lora is not None:
        add_adapters(model, lora)
    materialize_on_mesh(model, TrainConfig(), layout or Layout(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and lora is not None:
                copy_shard_(parameter, 0.2 * torch.randn(parameter.shape, generator=generator))
    load_weights(model, str(folder))
    return model


def loaded_bytes(folder: Path, kind: str, layout: Layout) -> dict[str, torch.Tensor]:
    """The whole state of the model of `quantized` on a rank of `layout`."""
    model = quantized(folder, kind, layout=layout)
    return {name: full_tensor(tensor) for name, tensor in model.state_dict().items()}
