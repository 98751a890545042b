"""The chunked loss head is F.cross_entropy of the full logits, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from support.memory import peak_bytes
from support.packed import relative

from sft_hydra.kernels.loss import linear_cross_entropy
from sft_hydra.records import IGNORE_INDEX


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=generator)
    weight = torch.randn(33, 16, generator=generator)
    targets = torch.randint(0, 33, (50,), generator=generator)
    targets[torch.rand(50, generator=generator) < 0.4] = IGNORE_INDEX
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_equals_cross_entropy(problem, chunk):
    hidden, weight, targets = problem
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss, per_token = linear_cross_entropy(*ours, targets, chunk)
    each = F.cross_entropy(theirs[0] @ theirs[1].T, targets, ignore_index=IGNORE_INDEX, reduction="none")
    (loss / 3).backward()
    (each.sum() / 3).backward()
    assert relative(per_token, each.detach()) < 1e-6
    assert relative(loss.detach(), each.sum().detach()) < 1e-6
    for mine, reference in zip(ours, theirs, strict=True):
        assert relative(mine.grad, reference.grad) < 1e-5
    assert not per_token.requires_grad


def test_frozen_head_and_frozen_body(problem):
    hidden, weight, targets = problem
    body = hidden.clone().requires_grad_()
    linear_cross_entropy(body, weight, targets)[0].backward()
    assert body.grad is not None
    head = weight.clone().requires_grad_()
    linear_cross_entropy(hidden, head, targets)[0].backward()
    assert head.grad is not None


def test_nothing_trained_is_zero_loss_and_zero_gradient(problem):
    hidden, weight, targets = problem
    body = hidden.clone().requires_grad_()
    loss, _ = linear_cross_entropy(body, weight, torch.full_like(targets, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert body.grad.abs().max() == 0


def test_bf16_loss_is_summed_in_fp32(problem):
    hidden, weight, targets = (t.bfloat16() if t.is_floating_point() else t for t in problem)
    loss, _ = linear_cross_entropy(hidden, weight, targets)
    logits = (hidden @ weight.T).float()
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    assert loss.dtype == torch.float32
    assert relative(loss, expected) < 1e-6


def test_memory_does_not_grow_with_vocabulary_times_tokens():
    """Beyond inputs and their gradients, a few chunks of logits are all there ever is, however long the row."""
    width, vocab, chunk = 16, 4000, 64

    def beyond(tokens):
        hidden = torch.randn(tokens, width, requires_grad=True)
        weight = torch.randn(vocab, width, requires_grad=True)
        targets = torch.randint(0, vocab, (tokens,))
        peak = peak_bytes(lambda: linear_cross_entropy(hidden, weight, targets, chunk)[0].backward())
        return peak - 4 * (2 * weight.numel() + 3 * hidden.numel())

    short, long = beyond(256), beyond(2048)
    logits_of_a_chunk = 4 * chunk * vocab
    assert short < 5 * logits_of_a_chunk
    assert long < short + 0.5 * logits_of_a_chunk
    assert peak_bytes(lambda: torch.randn(2048, vocab)) > 8 * long  # what whole logits alone would take
