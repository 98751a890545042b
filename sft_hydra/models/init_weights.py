"""Random initialization. Every parameter depends only on (seed, its name), so it is the same under every layout."""

import math

import torch

from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.seeded_generator import seeded_generator
from sft_hydra.parallel.dtensor import copy_shard_, local_shard

OUT_PROJECTIONS = ("o_proj", "down_proj", "out_proj")  # projections into the residual stream
QK_NORMS = ("q_norm", "k_norm")
QK_NORM_START = 1.7  # sharper attention from the first step: small models learn to copy in far fewer steps


@torch.no_grad()
def init_weights(model: DecoderModel, seed: int, std: float) -> None:
    """Initialize parameters and buffers in place.

    `std`: standard deviation of embeddings and lm_head. Hidden matrices get 0.5 / sqrt(inputs); projections into the
    residual stream std / sqrt(2 * layers) (GPT-2).
    """
    depth = model.config.num_hidden_layers
    for buffer in model.buffers():
        buffer.zero_()  # the only buffer is the routers' score correction bias
    for name, parameter in model.named_parameters():
        quantized = model.quantized.get(name)
        shape = parameter.shape if quantized is None else quantized.shape
        generator = seeded_generator(seed, name)
        layer, leaf = name.split(".")[-2:]
        if leaf in ("A_log", "dt_bias", "D"):
            copy_shard_(parameter, _state_space(leaf, len(parameter), model, generator))
        elif leaf == "bias":
            parameter.zero_()
        elif len(shape) == 1:
            parameter.fill_(QK_NORM_START if layer in QK_NORMS else 1.0)
        else:
            spread = 0.5 * shape[-1] ** -0.5
            if layer in ("embed_tokens", "lm_head"):
                spread = std
            elif layer in OUT_PROJECTIONS:
                spread = std / math.sqrt(2 * depth)
            values = torch.randn(shape, generator=generator) * spread
            if quantized is None:
                copy_shard_(parameter, values)
            else:
                quantized.fill(parameter, values[quantized.needed(local_shard(parameter)[1])])


def _state_space(leaf: str, heads: int, model: DecoderModel, generator: torch.Generator) -> torch.Tensor:
    """Initial A_log, dt_bias or D (heads,) of Mamba-2: decays 1, 2, 3, ..., log-uniform time steps, skip of 1."""
    if leaf == "A_log":
        return torch.arange(1, heads + 1).float().log()
    if leaf == "D":
        return torch.ones(heads)
    low, high = math.log(model.config.time_step_min), math.log(model.config.time_step_max)
    steps = torch.empty(heads).uniform_(low, high, generator=generator).exp()
    steps = steps.clamp_min(model.config.time_step_floor)
    return steps + torch.log(-torch.expm1(-steps))  # inverse softplus of the time step
