"""The grouped product is one linear layer per expert."""

import pytest
import torch
from support.packed import relative

from sft_hydra.kernels.grouped import grouped_linear


@pytest.mark.parametrize("counts", [[3, 0, 7, 1], [0, 0, 11, 0], [0, 0, 0, 0]])
def test_equals_a_loop_with_empty_experts(counts):
    torch.manual_seed(0)
    x = torch.randn(sum(counts), 6, requires_grad=True)
    weight = torch.randn(4, 5, 6, requires_grad=True)
    out = grouped_linear(x, weight, torch.tensor(counts))
    expected = torch.cat([part @ weight[i].T for i, part in enumerate(x.split(counts))])
    assert out.shape == expected.shape
    if len(out):
        assert relative(out, expected) < 1e-6
    expected_grads = torch.autograd.grad(expected.square().sum(), (x, weight))
    for mine, reference in zip(torch.autograd.grad(out.square().sum(), (x, weight)), expected_grads, strict=True):
        assert torch.allclose(mine, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("counts", [[3, 0, 70, 1], [0, 0, 74, 0], [74, 0, 0, 0], [16, 16, 21, 21]])
def test_fast_kernel_equals_the_reference(counts):
    torch.manual_seed(0)
    rounded = torch.randn(74, 64, device="cuda").bfloat16(), torch.randn(4, 32, 64, device="cuda").bfloat16()
    fast = [tensor.clone().requires_grad_() for tensor in rounded]
    exact = [tensor.float().requires_grad_() for tensor in rounded]
    out, expected = (grouped_linear(*tensors, torch.tensor(counts, device="cuda")) for tensors in (fast, exact))
    assert relative(out.float(), expected) < 1e-2
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream.float())
    for mine, theirs in zip(fast, exact, strict=True):
        assert relative(mine.grad.float(), theirs.grad) < 1e-2
