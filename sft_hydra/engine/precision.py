"""Compute dtype of the forward pass. Master weights, losses and reductions are fp32 either way.

Our layers compute in the dtype of their input (models/layers.py); autocast is for transformers models.
"""

from contextlib import AbstractContextManager

import torch

from sft_hydra.schema.train import Precision

WITH_BF16 = ("AVX512", "SVE256")  # instruction sets for which oneDNN, which torch multiplies bf16 with, has kernels


def compute_dtype(precision: Precision | None, device: torch.device) -> torch.dtype:
    """The dtype of `train.precision`; None: bf16 on CUDA and fp32 elsewhere."""
    if precision is None:
        precision = Precision.bf16 if device.type == "cuda" else Precision.fp32
    return torch.bfloat16 if precision is Precision.bf16 else torch.float32


def orthogonal_dtype(precision: Precision | None, device: torch.device, stored_on: torch.device) -> torch.dtype:
    """Muon's compute dtype, for a model on `device` whose weights are on `stored_on` between steps (another device with
    `train.cpu_offload`): that of the forward pass, or fp32 if bf16 products are slow there."""
    slow = stored_on.type == "cpu" and not cpu_multiplies_bf16()
    return torch.float32 if slow else compute_dtype(precision, device)


def cpu_multiplies_bf16() -> bool:
    """Whether torch has a library for products in bf16 on this CPU. Without, they are a plain loop, 100 times slower."""
    fast = torch.backends.cpu.get_cpu_capability() in WITH_BF16
    return fast and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def autocast(precision: Precision | None, device: torch.device) -> AbstractContextManager[None]:
    """Autocast context for the forward pass of a transformers model with fp32 weights."""
    dtype = compute_dtype(precision, device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
