"""Log likelihoods in batches equal those of each pair alone."""

import pytest
import torch
from support.packed import ARCHITECTURES, VOCAB, make_model

from sft_hydra.evaluation import likelihood
from sft_hydra.evaluation.likelihood import log_likelihoods
from sft_hydra.models.build import as_transformers

PAIRS = [
    ([1, 2, 3], [4]),
    ([1, 2, 3], [5]),
    ([1, 2, 3, 4], [7, 8, 9]),
    ([1], [2]),
    (list(range(40)), [3, 3]),
    ([1, 2], [3, 6]),
    ([9, 9, 9], [1, 2, 3, 4, 5, 6, 7]),
]


def alone(theirs, context, continuation):
    with torch.no_grad():
        log_probs = theirs(torch.tensor([context + continuation[:-1]])).logits[0].log_softmax(-1)
    log_probs = log_probs[-len(continuation) :]
    greedy = log_probs.argmax(-1).tolist() == continuation
    return sum(float(row[token]) for row, token in zip(log_probs, continuation, strict=True)), greedy


@pytest.mark.parametrize("family", ["qwen3", "nano", "qwen3_moe", "mistral_window"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_pairs_in_batches_equal_pairs_alone(family, batch_size):
    theirs = as_transformers(make_model(ARCHITECTURES[family]))
    likeliest = theirs(torch.tensor([[5, 6]])).logits[0, -1].argmax().item()
    pairs = [*PAIRS, ([5, 6], [likeliest])]
    answered = []
    found = log_likelihoods(theirs, pairs, batch_size, answered.append)
    expected = [alone(theirs, *pair) for pair in pairs]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert found[-1][1]
    assert sum(answered) == len(pairs)


def test_choices_of_one_question_share_a_forward_pass(monkeypatch):
    theirs = as_transformers(make_model(ARCHITECTURES["qwen3"]))
    sizes = []
    forward = theirs.forward
    monkeypatch.setattr(theirs, "forward", lambda ids, **options: sizes.append(ids.shape) or forward(ids, **options))
    log_likelihoods(theirs, [([1, 2, 3], [letter]) for letter in range(4, 8)], 16)
    assert sizes == [(1, 3)]


def test_a_batch_shrinks_to_what_its_logits_may_take(monkeypatch):
    theirs = as_transformers(make_model(ARCHITECTURES["qwen3"]))
    monkeypatch.setattr(likelihood, "LOGITS", 4 * VOCAB)
    sizes = []
    log_likelihoods(theirs, [([number, 2], [1, 3]) for number in range(9)], 16, sizes.append)
    assert sizes == [2, 2, 2, 2, 1]
