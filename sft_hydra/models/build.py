"""From a Hugging Face architecture to one of our models, and from one of ours to the transformers implementation.

Models are built on the meta device first: no weight exists twice, and none before its place is known.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sft_hydra.errors import ModelError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.dense import dense_model
from sft_hydra.models.lora import merged_state
from sft_hydra.models.names import to_disk
from sft_hydra.models.streams import stream

FAMILIES: dict[str, Callable[[Any], DecoderModel]] = {
    "llama": dense_model,
    "mistral": dense_model,
    "qwen2": dense_model,
    "qwen3": dense_model,
}

OUT_PROJECTIONS = ("o_proj", "down_proj", "out_proj")  # those that write into the residual stream
QK_NORMS = ("q_norm", "k_norm")
QK_NORM_START = 1.7  # sharper attention from the first step: small models learn to copy in far fewer steps


def read_config(architecture: dict[str, Any]) -> Any:
    """The transformers config of the fields of a config.json, with transformers' own defaults for what they leave out."""
    from transformers import AutoConfig

    family = architecture.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"model_type {family!r} has no implementation here; there are: {', '.join(sorted(FAMILIES))}. "
            "Any other causal language model of transformers trains with model=hf model.path=..."
        )
    return AutoConfig.for_model(**architecture)


def build_model(architecture: dict[str, Any], device: torch.device | str, dtype: torch.dtype) -> DecoderModel:
    """The model of a config.json, on `device`, its weights not yet set: fill them by init_weights or load_weights."""
    config = read_config(architecture)
    with torch.device("meta"):
        model = FAMILIES[config.model_type](config).to(dtype)
    return model.to_empty(device=device)


@torch.no_grad()
def init_weights(model: DecoderModel, seed: int, std: float) -> None:
    """A random start. Every parameter has its own stream, drawn from (seed, its name): no order or layout matters.

    `std` is that of embeddings and head. Hidden matrices are scaled by their inputs, those that write into the residual
    stream by the depth too.
    """
    depth = len(model.model.layers)
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")[-2:]
        if kind == "bias":
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(QK_NORM_START if layer in QK_NORMS else 1.0)
        elif layer in ("embed_tokens", "lm_head"):
            _normal(parameter, std, seed, name)
        elif layer in OUT_PROJECTIONS:
            _normal(parameter, std / math.sqrt(2 * depth), seed, name)
        else:
            _normal(parameter, 0.5 * parameter.shape[-1] ** -0.5, seed, name)


def _normal(parameter: nn.Parameter, std: float, seed: int, name: str) -> None:
    parameter.copy_(torch.randn(parameter.shape, generator=stream(seed, name)) * std)


def as_transformers(model: DecoderModel) -> Any:
    """The transformers model with these weights, in eval mode: for generation.

    Parameters that both sides hold in the same form share their memory, so no second copy of a dense model exists;
    what LoRA changes is merged into a copy. Ask again after the weights have changed.
    """
    return transformers_model(model.config, merged_state(model))


def transformers_model(config: Any, state: dict[str, torch.Tensor]) -> Any:
    """The transformers model of `config` with weights named as ours, in eval mode; shares memory where it can."""
    from transformers.utils import logging

    weights = dict(to_disk(config, state))
    dtype = next(iter(weights.values())).dtype
    logging.disable_progress_bar()
    return transformers_class(config).from_pretrained(None, config=config, state_dict=weights, dtype=dtype).eval()


def transformers_class(config: Any) -> Any:
    """The causal language model class that transformers has for `config`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
