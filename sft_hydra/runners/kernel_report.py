"""Which kernels a model uses on this device, and why faster ones are not used: for the log, summary.json and the report."""

import torch

from sft_hydra.kernels import fused_choice, library_choice
from sft_hydra.kernels.library_choice import CAUSAL_CONV1D, FLASH_ATTN, MAMBA_SSM, VARLEN_ATTN, named, why_not
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.mamba import Mamba
from sft_hydra.models.moe import MoE

PLAIN = "plain torch"


def kernels_of(model: DecoderModel) -> dict[str, str]:
    """Operation -> the kernel that computes it, with the reason for each that would go first."""
    device = model.device.type
    unfit = "" if model.rounds_to is not None else "in bf16 only, this run is in fp32"
    if device != library_choice.DEVICE:
        unfit = f"the device is {device}"
    found = {"attention": _chosen((FLASH_ATTN, VARLEN_ATTN), "torch scaled_dot_product_attention", unfit)}
    if any(isinstance(module, Mamba) for module in model.modules()):
        found["convolution"] = _chosen((CAUSAL_CONV1D,), PLAIN, unfit)
        found["scan"] = _chosen((MAMBA_SSM,), PLAIN, unfit)
    if any(isinstance(module, MoE) for module in model.modules()):
        grouped = model.device.type == "cuda" and model.rounds_to is torch.bfloat16
        found["experts"] = "torch grouped_mm" if grouped else "a product for each expert"
    found["norms, rotary, activations, loss"] = _fused(device)
    return found


def _fused(device: str) -> str:
    """The fused operations that are Triton kernels outside of compiled blocks, and why the others are not."""
    if device != fused_choice.DEVICE:
        return f"{PLAIN} (Triton: the device is {device})"
    reasons = {operation: fused_choice.why_not_fused(operation) for operation in fused_choice.OPERATIONS}
    used = [operation for operation, reason in reasons.items() if reason is None]
    refused = "; ".join(f"{operation}: {reason}" for operation, reason in reasons.items() if reason is not None)
    return (f"Triton: {', '.join(used)}" if used else PLAIN) + (f" ({refused})" if refused else "")


def _chosen(kernels: tuple[str, ...], otherwise: str, unfit: str) -> str:
    """The first of `kernels` that is used, or `otherwise`. `unfit`: why this run uses none of them, if so."""
    if unfit:
        return f"{otherwise} ({', '.join(kernels)}: {unfit})"
    refused = []
    for kernel in kernels:
        reason = why_not(kernel)
        if reason is None:
            otherwise = named(kernel)
            break
        refused.append(f"{kernel}: {reason}")
    return f"{otherwise} ({'; '.join(refused)})" if refused else otherwise
