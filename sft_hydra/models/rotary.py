"""Angles of the rotary position embedding (RoPE, Su et al. 2021). Scaled frequencies (linear, llama3, YaRN: Peng et al. 2023) come from
transformers' implementation."""

from typing import Any

import torch

from sft_hydra.errors import ModelError

SCALINGS = ("linear", "llama3", "yarn")  # scalings whose frequencies do not depend on the sequence length


def check_rotary(config: Any) -> None:
    """ModelError if the RoPE settings of this transformers config are not supported."""
    rope = config.rope_parameters
    if rope["rope_type"] not in ("default", *SCALINGS):
        raise ModelError(f"rope_type {rope['rope_type']!r} is not supported; supported: default, {', '.join(SCALINGS)}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(f"partial_rotary_factor {rope['partial_rotary_factor']} is not supported; only 1.0 is")


def rotary_tables(config: Any, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each (T, 1, head_dim) fp32, for `position_ids` (T,)."""
    rope = config.rope_parameters
    device = position_ids.device
    if rope["rope_type"] == "default":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float, device=device) / size)
        factor = 1.0
    else:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, device)
    angles = position_ids[:, None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos() * factor, angles.sin() * factor
