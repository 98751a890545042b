"""A packed row gives the same logits, loss and gradients as the transformers model on each conversation alone."""

import pytest
import torch
from support.packed import (
    ARCHITECTURES,
    PACKINGS,
    alone,
    gradients,
    logits_of,
    make_model,
    make_row,
    oracle_gradients,
    oracle_of,
    relative,
)

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss

CASES = [(family, "many_tiny") for family in ARCHITECTURES] + [("qwen3", packing) for packing in PACKINGS]
CASES += [("nano", packing) for packing in PACKINGS]


@pytest.mark.parametrize(("family", "packing"), sorted(set(CASES)))
def test_logits_loss_and_gradients(family, packing, tmp_path):
    model = make_model(ARCHITECTURES[family])
    oracle = oracle_of(model)
    rows = [make_row(PACKINGS[packing], seed=1), make_row([5, 17], seed=2)]
    batch = make_batch(rows, "cpu")

    expected_logits, expected_loss = alone(oracle, rows)
    assert relative(logits_of(model, batch), expected_logits) < 1e-5

    loss, _ = forward_loss(model, batch)
    assert relative(loss, expected_loss) < 1e-6
    loss.backward()
    expected_loss.backward()
    expected = oracle_gradients(oracle, tmp_path)
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert relative(gradient, expected[name]) < 1e-5, name


@pytest.mark.parametrize("family", ["qwen3", "mistral_window", "qwen3_moe", "nano", "super"])
def test_other_conversations_are_bit_identical_when_one_changes(family):
    model = make_model(ARCHITECTURES[family])
    row = make_row(PACKINGS["many_tiny"], seed=3)
    start, end = int(row.seq_start_id[4]), int(row.seq_start_id[5])
    with torch.no_grad():
        before = logits_of(model, make_batch([row], "cpu"))
        row.input_ids[start:end] = row.input_ids[start:end][::-1]
        after = logits_of(model, make_batch([row], "cpu"))
    assert torch.equal(before[:start], after[:start])
    assert torch.equal(before[end:], after[end:])
    assert not torch.equal(before[start:end], after[start:end])
