"""RMSNorm of a sum is torch's of torch's sum."""

import pytest
import torch
import torch.nn.functional as F
from support.fused import agrees

from sft_hydra.kernels.norm import add_rms_norm, rms_norm

DTYPES = [torch.float32, torch.bfloat16]


def reference(x, update, weight):
    return x + update, F.rms_norm(x + update, weight.shape, weight, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(7, 48), (1, 64), (4, 5)])
def test_norm_of_a_sum(fused, dtype, rows, width):
    torch.manual_seed(0)
    tensors = [torch.randn(rows, width), torch.randn(rows, width), torch.randn(width)]
    agrees(lambda x, update, weight: add_rms_norm(x, update, weight, 1e-6), reference, tensors, fused, dtype)


def test_norm_of_one_tensor_and_the_tensor_itself(fused):
    torch.manual_seed(0)
    tensors = [torch.randn(5, 24), torch.randn(24)]
    agrees(
        lambda x, weight: add_rms_norm(x, None, weight, 1e-6),
        lambda x, weight: (x.clone(), F.rms_norm(x, weight.shape, weight, 1e-6)),
        tensors,
        fused,
        torch.float32,
    )
    agrees(
        lambda x, weight: rms_norm(x, weight, 1e-6),
        lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6),
        tensors,
        fused,
        torch.float32,
    )


def test_only_the_sum_goes_on(fused):
    x, update = (torch.randn(3, 8, device=fused, requires_grad=True) for _ in range(2))
    add_rms_norm(x, update, torch.ones(8, device=fused), 1e-6)[0].sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(update.grad, torch.ones_like(x))
