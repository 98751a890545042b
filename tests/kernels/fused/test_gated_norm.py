"""Mamba's gated norm is its formula in plain torch, and transformers'."""

import pytest
import torch
import torch.nn.functional as F
from support.fused import agrees
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

from sft_hydra.kernels.norm import gated_norm


def reference(y, z, weight):
    gated = y * F.silu(z)
    return (gated * (gated.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).flatten(1) * weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "groups", "width"), [(7, 2, 24), (1, 3, 8)])
def test_gated_norm(fused, dtype, tokens, groups, width):
    torch.manual_seed(0)
    tensors = [torch.randn(tokens, groups, width), torch.randn(tokens, groups, width), torch.randn(groups * width)]
    agrees(lambda y, z, weight: gated_norm(y, z, weight, 1e-6), reference, tensors, fused, dtype)


def test_gate_is_a_part_of_a_projection(fused):
    torch.manual_seed(0)
    tensors = [torch.randn(4, 2, 8), torch.randn(4, 2, 20), torch.randn(16)]
    agrees(
        lambda y, z, weight: gated_norm(y, z[..., 3:11], weight, 1e-6),
        lambda y, z, weight: reference(y, z[..., 3:11], weight),
        tensors,
        fused,
        torch.float32,
    )


def test_groups_are_those_of_transformers(fused):
    torch.manual_seed(0)
    norm = MambaRMSNormGated(16, group_size=8, eps=1e-6).to(fused)
    y, z = torch.randn(4, 2, 8, device=fused), torch.randn(4, 2, 8, device=fused)
    assert torch.allclose(gated_norm(y, z, norm.weight, 1e-6), norm(y.flatten(1), z.flatten(1)), atol=1e-6)
