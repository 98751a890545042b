"""`train.deterministic`: the same bits from the same step on CUDA, at the cost of slower kernels.

By default, backward passes of FlashAttention, mamba-ssm and scatter-add sum in an order that differs from run to run. On a CPU
steps are deterministic as they are.
"""

import os

import torch
import torch.utils.deterministic


def compute_deterministically() -> None:
    """Make torch use deterministic algorithms in this process, and refuse operations that have none. flash-attn and mamba-ssm
    follow torch's switch. Call it before CUDA is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without a workspace of its own, cuBLAS may split sums
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # costs time, and nothing reads memory it has not written
    )
