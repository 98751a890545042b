"""Compute dtype of the forward pass. Master weights, losses and reductions are fp32 either way.

Our layers compute in the dtype of their input (models/layers.py); autocast is for transformers models.
"""

from contextlib import AbstractContextManager

import torch

from sft_hydra.schema.config import Precision, SftConfig


def compute_dtype(cfg: SftConfig, device: torch.device) -> torch.dtype:
    """`train.precision`; if it is null, bf16 on CUDA and fp32 elsewhere."""
    precision = cfg.train.precision
    if precision is None:
        precision = Precision.bf16 if device.type == "cuda" else Precision.fp32
    return torch.bfloat16 if precision is Precision.bf16 else torch.float32


def autocast(cfg: SftConfig, device: torch.device) -> AbstractContextManager[None]:
    """Autocast context for the forward pass of a transformers model with fp32 weights."""
    dtype = compute_dtype(cfg, device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
