"""Rows in another order, and their gradient."""

import pytest
import torch

from sft_hydra.kernels.permute import inverse_of, permuted


@pytest.mark.parametrize(("rows", "copies"), [(7, 1), (7, 3), (0, 2)])
def test_equals_indexing_with_its_gradient(rows, copies):
    torch.manual_seed(0)
    x = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(rows * copies)
    inverse = inverse_of(order)
    assert torch.equal(order[inverse], torch.arange(rows * copies))
    ours, plain = permuted(x, order, inverse, copies), x[order // copies]
    assert torch.equal(ours, plain)
    upstream = torch.randn_like(plain)
    mine, reference = (torch.autograd.grad(out, x, upstream)[0] for out in (ours, plain))
    assert torch.allclose(mine, reference, rtol=1e-12, atol=1e-12)
