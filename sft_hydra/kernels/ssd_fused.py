"""Mamba-2 convolution and scan with the kernels of causal-conv1d and mamba-ssm: on CUDA, in bf16 or fp16, if they work there.

Both take the document index of each token, so they reset at document boundaries; `pytest -m gpu` compares them with ssd.py.
"""

import torch

from sft_hydra.kernels.library_choice import CAUSAL_CONV1D, MAMBA_SSM, is_used

HALF = (torch.bfloat16, torch.float16)


def fuses_convolution(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the causal-conv1d kernel supports x (T, C) and `weight` (C, K)."""
    return (
        is_used(CAUSAL_CONV1D) and x.is_cuda and x.dtype in HALF and x.shape[1] % 8 == 0 and 2 <= weight.shape[1] <= 4
    )


def fuses_scan(x: torch.Tensor, chunk: int) -> bool:
    """Whether the mamba-ssm kernel supports x (T, H, P) in chunks of `chunk` tokens (a power of two, at least 16)."""
    return is_used(MAMBA_SSM) and x.is_cuda and x.dtype in HALF and chunk >= 16 and chunk & (chunk - 1) == 0


def fused_conv_silu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, seq_idx: torch.Tensor
) -> torch.Tensor:
    """The fused `kernels.ssd.causal_conv_silu`, with the same arguments and shapes."""
    from causal_conv1d import causal_conv1d_fn

    channels_last = x.contiguous().T[None]  # (1, C, T), the layout required with seq_idx
    return causal_conv1d_fn(channels_last, weight, bias, seq_idx=seq_idx[None], activation="silu")[0].T


def fused_ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    seq_idx: torch.Tensor,
    chunk: int,
) -> torch.Tensor:
    """The fused `kernels.ssd.ssd`, with the same arguments and shapes."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    batch = (tensor.contiguous()[None] for tensor in (x, dt))
    inputs, outputs = (tensor.contiguous()[None] for tensor in (B, C))
    return mamba_chunk_scan_combined(*batch, A, inputs, outputs, chunk, D=D, seq_idx=seq_idx[None])[0]
