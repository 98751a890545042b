"""Fused activations are torch's."""

import pytest
import torch
import torch.nn.functional as F
from support.fused import agrees

from sft_hydra.kernels.activation import gated, gated_halves, relu2

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 1030])
def test_silu_product(fused, dtype, width):
    torch.manual_seed(0)
    tensors = [torch.randn(4, width), torch.randn(4, width)]
    agrees(lambda g, u: gated(F.silu, g, u), lambda g, u: F.silu(g) * u, tensors, fused, dtype)


def test_halves_of_one_tensor_and_columns_of_one(fused):
    torch.manual_seed(0)

    def halves(x):
        return F.silu(x[:, :6]) * x[:, 6:]

    both = [torch.randn(5, 12)]
    agrees(lambda x: gated_halves(F.silu, x), halves, both, fused, torch.float32)
    agrees(lambda x: gated(F.silu, x[:, :6], x[:, 6:]), halves, both, fused, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu2(fused, dtype):
    torch.manual_seed(0)
    agrees(relu2, lambda x: F.relu(x).square(), [torch.randn(3, 700)], fused, dtype)


def test_an_expert_without_tokens(fused):
    x = torch.randn(0, 8, device=fused, requires_grad=True)
    (gated_halves(F.silu, x).sum() + relu2(x).sum()).backward()
    assert x.grad.shape == (0, 8)
