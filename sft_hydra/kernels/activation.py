"""Activations of feed-forward layers: Triton kernels where they are chosen (fused_choice.py), else plain torch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from sft_hydra.kernels.fused_choice import is_fused

Activation = Callable[[torch.Tensor], torch.Tensor]


def relu2(x: torch.Tensor) -> torch.Tensor:
    """Squared ReLU (Primer, So et al. 2021)."""
    if is_fused("activation", x):
        from sft_hydra.kernels.fused import activation as triton_activation

        return triton_activation.relu2(x)
    return F.relu(x).square()


def gated(act: Activation, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """act(gate) * up, all (T, width)."""
    if act is F.silu and is_fused("activation", gate):
        from sft_hydra.kernels.fused import activation as triton_activation

        return triton_activation.silu_product(gate, up)
    return act(gate) * up


def gated_halves(act: Activation, gate_up: torch.Tensor) -> torch.Tensor:
    """act(gate) * up (T, width), where `gate_up` (T, 2 * width) holds the gate and then `up`."""
    if act is F.silu and is_fused("activation", gate_up):
        from sft_hydra.kernels.fused import activation as triton_activation

        return triton_activation.silu_product(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return act(gate) * up
