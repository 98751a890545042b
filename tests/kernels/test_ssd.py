"""The chunked scan and the convolution are their plain recurrences, document by document."""

import pytest
import torch
import torch.nn.functional as F
from support.packed import relative
from torch.utils._python_dispatch import TorchDispatchMode

from sft_hydra.kernels import ssd_fused
from sft_hydra.kernels.library_choice import CAUSAL_CONV1D, MAMBA_SSM, is_used
from sft_hydra.kernels.ssd import causal_conv_silu, ssd

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BORDERS = [[300], [128, 128, 44], [1] * 9 + [291], [127, 1, 129, 33, 10], [1, 299]]  # around chunks of 128


def documents(lengths):
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(torch.int32)


def recurrence(x, dt, A, B, C, D, lengths):
    """h and y token by token, from zero in every document."""
    ratio = x.shape[1] // B.shape[1]
    B, C = B.repeat_interleave(ratio, 1), C.repeat_interleave(ratio, 1)
    outputs = []
    for part in torch.arange(len(x)).split(lengths):
        h = torch.zeros(x.shape[1], x.shape[2], B.shape[2])
        for t in part:
            h = torch.exp(dt[t] * A)[:, None, None] * h + (dt[t, :, None] * x[t])[..., None] * B[t][:, None]
            outputs.append((h * C[t][:, None]).sum(-1) + D[:, None] * x[t])
    return torch.stack(outputs)


@pytest.mark.parametrize("lengths", [[50], [16, 16, 18], [1] * 9 + [41], [15, 1, 17, 33, 2], [3]])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_scan_equals_the_recurrence(lengths, chunk):
    torch.manual_seed(0)
    total = sum(lengths)
    x, B, C = torch.randn(total, 6, 4), torch.randn(total, 2, 5), torch.randn(total, 2, 5)
    dt, A, D = F.softplus(torch.randn(total, 6) - 1), -torch.rand(6) * 8, torch.randn(6)
    ours = [tensor.clone().requires_grad_() for tensor in (x, dt, A, B, C, D)]
    theirs = [tensor.clone().requires_grad_() for tensor in (x, dt, A, B, C, D)]
    y = ssd(*ours, documents(lengths), chunk)
    expected = recurrence(*theirs, lengths)
    assert relative(y, expected) < 1e-5
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        assert relative(mine.grad, reference.grad) < 1e-5


def test_a_document_with_huge_decays_does_not_touch_the_rounding_of_the_next():
    torch.manual_seed(0)
    x, B, C = torch.randn(32, 2, 4), torch.randn(32, 1, 5), torch.randn(32, 1, 5)
    dt, A, D = torch.rand(32, 2), -torch.rand(2), torch.randn(2)
    before = ssd(x, dt, A, B, C, D, documents([9, 23]), 16)
    dt[:9] *= 1e4
    x[:9] *= 1e4
    after = ssd(x, dt, A, B, C, D, documents([9, 23]), 16)
    assert torch.equal(before[9:], after[9:])
    assert not torch.equal(before[:9], after[:9])


@pytest.mark.parametrize("lengths", [[20], [1, 2, 3, 4, 5, 1], [2]])
def test_convolution_equals_conv1d_per_document(lengths):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(sum(lengths), 6), torch.randn(6, 4), torch.randn(6)
    ours = causal_conv_silu(x, weight, bias, documents(lengths))
    padded = [F.pad(part.T[None], (3, 0)) for part in x.split(lengths)]
    expected = torch.cat([F.silu(F.conv1d(part, weight[:, None], bias, groups=6))[0].T for part in padded])
    assert relative(ours, expected) < 1e-6


def close_to_the_reference(work, tensors, tolerance):
    """Runs `work` in bf16 on the device and in fp32 on the CPU, from the same numbers: outputs and all gradients."""
    rounded = [t.bfloat16() if t.ndim == 3 else t for t in tensors]
    fast = [t.cuda().clone().requires_grad_() for t in rounded]
    exact = [t.float().clone().requires_grad_() for t in rounded]
    out, expected = work(*fast), work(*exact)
    assert relative(out.float().cpu(), expected) < tolerance
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    out.backward(upstream.to(out))
    for mine, reference in zip(fast, exact, strict=True):
        assert relative(mine.grad.float().cpu(), reference.grad) < tolerance


@pytest.mark.gpu
@gpu
@pytest.mark.skipif(not is_used(CAUSAL_CONV1D), reason="needs causal-conv1d")
@pytest.mark.parametrize("lengths", BORDERS)
def test_fused_convolution_equals_the_reference(lengths):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(sum(lengths), 1, 64), torch.randn(64, 4), torch.randn(64)
    assert ssd_fused.fuses_convolution(x[:, 0].bfloat16().cuda(), weight)
    close_to_the_reference(
        lambda x, w, b: causal_conv_silu(x[:, 0], w, b, documents(lengths).to(x.device)), (x, weight, bias), 2e-2
    )


@pytest.mark.gpu
@gpu
@pytest.mark.skipif(not is_used(MAMBA_SSM), reason="needs mamba-ssm")
@pytest.mark.parametrize("lengths", BORDERS)
def test_fused_scan_equals_the_reference(lengths):
    torch.manual_seed(0)
    total = sum(lengths)
    x, B, C = torch.randn(total, 8, 64), torch.randn(total, 2, 128), torch.randn(total, 2, 128)
    dt, A, D = F.softplus(torch.randn(total, 8) - 3), -torch.rand(8) * 8, torch.randn(8)
    assert ssd_fused.fuses_scan(x.bfloat16().cuda(), 128)
    close_to_the_reference(
        lambda *tensors: ssd(*tensors, documents(lengths).to(tensors[0].device), 128), (x, dt, A, B, C, D), 3e-2
    )


@pytest.mark.gpu
@gpu
@pytest.mark.skipif(not is_used(MAMBA_SSM), reason="needs mamba-ssm")
def test_nothing_of_a_document_reaches_the_next_in_the_fused_scan():
    torch.manual_seed(0)
    lengths = [130, 170]
    seq_idx = documents(lengths).cuda()
    x, B, C = (torch.randn(300, n, 64, device="cuda").bfloat16() for n in (8, 2, 2))
    dt, A, D = torch.rand(300, 8, device="cuda"), -torch.rand(8, device="cuda"), torch.randn(8, device="cuda")
    before = ssd(x, dt, A, B, C, D, seq_idx, 128)
    x[:130] += 1
    assert relative(ssd(x, dt, A, B, C, D, seq_idx, 128)[130:].float(), before[130:].float()) < 1e-3


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.overloadpacket.__name__)
        return op(*args, **(kwargs or {}))


def test_deterministic_mode_computes_the_same_without_what_torch_then_refuses_on_cuda(request):
    torch.manual_seed(0)
    x, B, C = torch.randn(70, 4, 8), torch.randn(70, 2, 8), torch.randn(70, 2, 8)
    dt, A, D = torch.rand(70, 4), -torch.rand(4), torch.randn(4)
    expected = ssd(x, dt, A, B, C, D, documents([30, 40]), 16)
    request.getfixturevalue("deterministic")
    with Operators() as called:
        actual = ssd(x, dt, A, B, C, D, documents([30, 40]), 16)
    assert "cumsum" not in called.names
    assert relative(actual, expected) < 1e-5
