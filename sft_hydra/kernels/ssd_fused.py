"""Mamba2's convolution and scan by the kernels of causal-conv1d and mamba-ssm: on CUDA, in 16 bits, where these are installed.

Both take the number of each token's document, so that nothing crosses a border; `pytest -m gpu` holds them to ssd.py.
"""

from importlib.util import find_spec

import torch

HAS_CAUSAL_CONV1D = find_spec("causal_conv1d") is not None
HAS_MAMBA_SSM = find_spec("mamba_ssm") is not None
HALF = (torch.bfloat16, torch.float16)


def fuses_convolution(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernel takes x (T, C) and `weight` (C, K)."""
    return HAS_CAUSAL_CONV1D and x.is_cuda and x.dtype in HALF and x.shape[1] % 8 == 0 and 2 <= weight.shape[1] <= 4


def fuses_scan(x: torch.Tensor, chunk: int) -> bool:
    """Whether the kernel takes x (T, H, P) in chunks of `chunk` tokens: a power of two of at least 16."""
    return HAS_MAMBA_SSM and x.is_cuda and x.dtype in HALF and chunk >= 16 and chunk & (chunk - 1) == 0


def fused_conv_silu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, seq_idx: torch.Tensor
) -> torch.Tensor:
    """See `causal_conv_silu`."""
    from causal_conv1d import causal_conv1d_fn

    channels_last = x.contiguous().T[None]  # (1, C, T), which the kernel wants for documents
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
    """See `ssd`."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    batch = (tensor.contiguous()[None] for tensor in (x, dt))
    inputs, outputs = (tensor.contiguous()[None] for tensor in (B, C))
    return mamba_chunk_scan_combined(*batch, A, inputs, outputs, chunk, D=D, seq_idx=seq_idx[None])[0]
