"""The loss over logits in place is F.cross_entropy, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from support.packed import relative

from sft_hydra.kernels.loss import linear_cross_entropy, softcapped
from sft_hydra.records import IGNORE_INDEX

MASKS = {"some": slice(0, None, 3), "all": slice(0, 0), "none": slice(None)}  # targets without a loss


def leaf(tensor, device="cpu"):
    return tensor.to(device).clone().requires_grad_()


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("vocab", [33, 4103])  # within a block of the kernel; more than one
@pytest.mark.parametrize("masked", MASKS)
def test_equals_cross_entropy(fused, masked, vocab, cap):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(11, 16), torch.randn(vocab, 16), torch.randint(0, vocab, (11,))
    targets[MASKS[masked]] = IGNORE_INDEX
    ours = [leaf(t, fused) for t in (hidden, weight)]
    theirs = [leaf(t) for t in (hidden, weight)]
    loss, per_token = linear_cross_entropy(*ours, targets.to(fused), 4, cap=cap)  # type: ignore[misc]
    logits = softcapped(theirs[0] @ theirs[1].T, cap)
    each = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    (loss / 3).backward()
    (each.sum() / 3).backward()
    assert relative(per_token.cpu(), each) < 1e-5
    for mine, reference in zip(ours, theirs, strict=True):
        assert relative(mine.grad.cpu(), reference.grad) < 2e-5


def test_large_logits_and_a_target_at_each_edge(fused):
    logits = torch.tensor([[300.0, -300.0, 0.0], [-1e4, 0.0, -1e4], [80.0, 80.0, 80.0]])
    targets = torch.tensor([0, 2, 1])
    hidden, weight = leaf(logits, fused), torch.eye(3, device=fused)
    linear_cross_entropy(hidden, weight, targets.to(fused))[0].backward()
    theirs = leaf(logits)
    F.cross_entropy(theirs, targets, reduction="sum").backward()
    assert relative(hidden.grad.cpu(), theirs.grad) < 1e-6


def test_bf16_logits(fused):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 16).bfloat16(), torch.randn(50, 16).bfloat16(), torch.randint(0, 50, (9,))
    ours, theirs = leaf(hidden, fused), leaf(hidden.float())
    loss, _ = linear_cross_entropy(ours, weight.to(fused), targets.to(fused))
    expected = F.cross_entropy(theirs @ weight.float().T, targets, reduction="sum")
    loss.backward()
    expected.backward()
    assert relative(loss.cpu(), expected) < 2e-2
    assert relative(ours.grad.float().cpu(), theirs.grad) < 2e-2


def test_without_gradient_nothing_is_written(fused):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 16, device=fused), torch.randn(50, 16, device=fused), torch.arange(9)
    with torch.no_grad():
        _, per_token = linear_cross_entropy(hidden, weight, targets.to(fused))
    expected = F.cross_entropy(hidden @ weight.T, targets.to(fused), reduction="none")
    assert relative(per_token, expected) < 1e-5
