"""Products of the blocks' linear layers in fp8, by torchao: inputs, weights and gradients are scaled tensor by tensor.

Weights, moments, checkpoints and exports stay as they are. Embedding, head, routers and routed experts are not touched.
"""

from importlib.util import find_spec

import torch

from sft_hydra.errors import ConfigError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.layers import Linear

SMALLEST = (8, 9)  # CUDA capability of the first devices that multiply in fp8


def check_fp8(device: torch.device) -> None:
    """ConfigError if `train.fp8=true` cannot be on this device or without what is installed."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if capability < SMALLEST:
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ConfigError(
            f"train.fp8=true: {what} does not multiply in fp8; it takes a CUDA device of capability 8.9 or more (H100, "
            "H200, L40); leave it out"
        )
    if find_spec("torchao") is None:
        raise ConfigError("train.fp8=true needs torchao: pip install 'torchao>=0.18' (the extra `speed`)")


def use_fp8(model: DecoderModel, *, emulate: bool = False) -> None:
    """Turn the linear layers of all blocks, in place; their names stay. `emulate`: rounded to fp8, multiplied as ever, on
    any device. Layers whose sizes are no multiples of 16 stay."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(module: torch.nn.Module, _: str) -> bool:
        return type(module) is Linear and module.in_features % 16 == 0 and module.out_features % 16 == 0

    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)  # rows have any number of tokens
    for block in model.blocks:
        convert_to_float8_training(block, config=config, module_filter_fn=fits)
