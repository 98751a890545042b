"""Which kernels compute a model on this device, and why not faster ones: for the log, summary.json and the report."""

import torch

from sft_hydra.kernels.library_choice import CAUSAL_CONV1D, FLASH_ATTN, MAMBA_SSM, VARLEN_ATTN, named, why_not
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.mamba import Mamba
from sft_hydra.models.moe import MoE

PLAIN = "plain torch"


def kernels_of(model: DecoderModel) -> dict[str, str]:
    """Operation -> the kernel that computes it, with the reason for each that would go first."""
    exact = "" if model.rounds_to is not None else "they compute in bf16, this run in fp32"
    found = {"attention": _chosen((FLASH_ATTN, VARLEN_ATTN), "torch scaled_dot_product_attention", exact)}
    if any(isinstance(module, Mamba) for module in model.modules()):
        found["convolution"] = _chosen((CAUSAL_CONV1D,), PLAIN, exact)
        found["scan"] = _chosen((MAMBA_SSM,), PLAIN, exact)
    if any(isinstance(module, MoE) for module in model.modules()):
        grouped = model.device.type == "cuda" and model.rounds_to is torch.bfloat16
        found["experts"] = "torch grouped_mm" if grouped else "a product for each expert"
    return found


def _chosen(kernels: tuple[str, ...], otherwise: str, exact: str) -> str:
    """The first of `kernels` that is used, or `otherwise`. `exact`: why none of them is used for this run, if so."""
    reasons: dict[str, list[str]] = {}
    chosen = otherwise
    for kernel in kernels:
        reason = why_not(kernel) or exact
        if not reason:
            chosen = named(kernel)
            break
        reasons.setdefault(reason, []).append(kernel)
    why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    return f"{chosen} ({why})" if why else chosen
