"""fp8 matrix products in the blocks' linear layers through torchao's float8 training, with tensor-wise dynamic scaling of
inputs, weights and gradients.

Stored weights, optimizer state, checkpoints and exports keep their dtypes. Embedding, lm_head, routers and routed experts
do not use fp8.
"""

from importlib.util import find_spec

import torch

from sft_hydra.errors import ConfigError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.layers import Linear
from sft_hydra.process.third_party_logs import quiet_third_party_logs

MIN_CAPABILITY = (8, 9)  # CUDA compute capability of the first devices with fp8 matrix products


def check_fp8(device: torch.device) -> None:
    """ConfigError if `train.fp8=true` is not supported by this device or torchao is not installed."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if capability < MIN_CAPABILITY:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ConfigError(
            f"train.fp8=true: {name} does not support fp8; a CUDA device of compute capability 8.9 or higher (H100, H200, "
            "L40) is required; remove train.fp8"
        )
    if find_spec("torchao") is None:
        raise ConfigError("train.fp8=true needs torchao: pip install 'torchao>=0.18' (the extra `speed`)")


def use_fp8(model: DecoderModel, *, emulate: bool = False) -> None:
    """Convert the linear layers of all blocks to fp8 in place; parameter names do not change.

    `emulate`: round to fp8 but multiply in high precision, on any device. Layers whose sizes are not multiples of 16 are
    left unconverted; ConfigError if that are all.
    """
    quiet_third_party_logs()
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.float8_linear import Float8Linear

    def fits(module: torch.nn.Module, _: str) -> bool:
        return type(module) is Linear and module.in_features % 16 == 0 and module.out_features % 16 == 0

    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)  # batches have any number of tokens
    for block in model.blocks:
        convert_to_float8_training(block, config=config, module_filter_fn=fits)
    if not any(isinstance(module, Float8Linear) for block in model.blocks for module in block.modules()):
        raise ConfigError(
            "train.fp8=true: no linear layer of this model has sizes that are multiples of 16, which fp8 products need; "
            "remove train.fp8"
        )
