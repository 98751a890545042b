"""The weighted sum over each token's experts is that of all outputs in plain torch."""

import pytest
import torch
from support.fused import agrees

from sft_hydra.kernels.permute import combined, inverse_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "k", "width"), [(9, 3, 20), (1, 1, 1030)])
def test_combined(fused, dtype, tokens, k, width):
    torch.manual_seed(0)
    order = torch.randperm(tokens * k)
    inverse = inverse_of(order)

    def reference(outputs, weights):
        return (outputs[inverse].unflatten(0, (tokens, k)) * weights[..., None]).sum(1)

    tensors = [torch.randn(tokens * k, width), torch.rand(tokens, k)]
    places = inverse.to(fused), order.to(fused)
    agrees(lambda outputs, weights: combined(outputs, weights, *places), reference, tensors, fused, dtype)
