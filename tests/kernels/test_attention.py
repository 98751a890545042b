"""Packed attention is attention of each document alone, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from support.packed import relative
from torch.overrides import TorchFunctionMode

from sft_hydra.kernels import attention
from sft_hydra.kernels.attention import attend
from sft_hydra.kernels.library_choice import FLASH_ATTN, is_used


def alone(q, k, v, lengths, window):
    outputs = []
    for parts in zip(*(t.split(lengths) for t in (q, k, v)), strict=True):
        size = len(parts[0])
        distance = torch.arange(size)[:, None] - torch.arange(size)
        mask = (distance >= 0) & (distance < (window or size))
        k_, v_ = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in parts[1:])
        scores = torch.einsum("lhd,shd->hls", parts[0], k_) * 0.3
        outputs.append(torch.einsum("hls,shd->lhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v_))
    return torch.cat(outputs)


@pytest.mark.parametrize("lengths", [[40], [1], [1, 1, 1], [3, 200, 1, 5, 90, 4, 170], [64, 64, 64]])
@pytest.mark.parametrize("window", [None, 5])
def test_equals_each_document_alone(lengths, window):
    torch.manual_seed(0)
    total = sum(lengths)
    ours = [torch.randn(total, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)
    out = attend(*ours, cu_seqlens, max(lengths), 0.3, window)
    expected = alone(*theirs, lengths, window)
    assert relative(out, expected) < 1e-5
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        # of documents of one token, scores have no gradient: what is left is rounding, held to the size of the numbers
        assert (mine.grad - reference.grad).norm() < 1e-5 * max(1.0, float(reference.grad.norm()))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("lengths", [[40], [1, 1, 1, 9], [3, 200, 1, 5, 90, 4, 170]])
def test_parts_of_the_queries_make_up_the_row(lengths, window):
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, 8, dtype=torch.double, requires_grad=True) for heads in (4, 2, 2))
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)
    whole = attend(q, k, v, cu_seqlens, max(lengths), 0.3, window)
    upstream = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, (q, k, v), upstream)
    for count in (2, 3, 5):
        outputs, first = [], 0
        for part in q.chunk(count):
            outputs.append(attend(part, k, v, cu_seqlens, max(lengths), 0.3, window, first_query=first))
            first += len(part)
        together = torch.cat(outputs)
        assert relative(together, whole) < 1e-12
        for mine, reference in zip(torch.autograd.grad(together, (q, k, v), upstream), expected, strict=True):
            assert relative(mine, reference) < 1e-12


class OnDevice(TorchFunctionMode):
    """Tensors that take themselves to be on CUDA; records calls of scaled_dot_product_attention."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__self__", None) is torch.Tensor.is_cuda:
            return True
        if function is F.scaled_dot_product_attention:
            self.calls.append(([x.shape[1] for x in args], kwargs["enable_gqa"]))
        return function(*args, **(kwargs or {}))


def test_grouped_heads_in_fp32_on_cuda_do_not_need_the_kernel_that_makes_all_scores():
    torch.manual_seed(0)
    q, k, v = (torch.randn(50, heads, 8) for heads in (4, 2, 2))
    cu_seqlens = torch.tensor([0, 20, 50], dtype=torch.int32)
    expected = attend(q, k, v, cu_seqlens, 30, 0.3)
    with OnDevice() as device:
        whole = attend(q, k, v, cu_seqlens, 30, 0.3)
        part = attend(q[20:], k, v, cu_seqlens, 30, 0.3, first_query=20)
    assert all(heads == [4, 4, 4] and not grouped for heads, grouped in device.calls)
    assert len(device.calls) == 2
    assert relative(whole, expected) < 1e-6
    assert relative(part, expected[20:]) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["flash-attn", "torch"])
@pytest.mark.parametrize("lengths", [[300], [1] * 5 + [295], [3, 200, 1, 5, 90], [127, 1, 128, 44], [299, 1]])
@pytest.mark.parametrize("window", [None, 5])
def test_flash_kernel_equals_the_reference(monkeypatch, kernel, lengths, window):
    if kernel == "flash-attn" and not is_used(FLASH_ATTN):
        pytest.skip("needs flash-attn")
    monkeypatch.setattr(attention, "is_used", lambda name: (name == FLASH_ATTN) == (kernel == "flash-attn"))
    torch.manual_seed(0)
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32).cuda()
    exact = [torch.randn(sum(lengths), heads, 64, device="cuda").bfloat16().float() for heads in (4, 2, 2)]
    reference = [tensor.clone().requires_grad_() for tensor in exact]
    fast = [tensor.bfloat16().requires_grad_() for tensor in exact]
    expected = attend(*reference, cu_seqlens, max(lengths), 0.125, window)
    out = attend(*fast, cu_seqlens, max(lengths), 0.125, window)
    assert relative(out.float(), expected) < 1e-2
    upstream = torch.randn_like(expected).bfloat16()
    expected.backward(upstream.float())
    out.backward(upstream)
    for mine, theirs in zip(fast, reference, strict=True):
        assert relative(mine.grad.float(), theirs.grad) < 2e-2
