"""NEFTune: noise of the size that the paper gives, on each conversation by itself, added to what transformers embeds."""

import numpy as np
import pytest
import torch
from support.generic import generic
from support.packed import ARCHITECTURES, logits_of, make_model, make_row, oracle_of, relative

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.models.embedding_noise import WEYL, mixed

LENGTHS = [400, 16, 3]
ROW = make_row(LENGTHS, seed=4)


def noise(alpha=8.0, seed=5, rows=(ROW,)):
    batch = make_batch(list(rows), "cpu").with_noise(32, alpha, seed)
    assert batch.noise is not None
    assert batch.noise is not None
    return batch.noise.added(torch.zeros(len(batch.input_ids), 32)), batch


def test_it_is_uniform_within_alpha_over_the_root_of_length_times_channels():
    values, _ = noise()
    for part, length in zip(values.split(LENGTHS), LENGTHS, strict=True):
        largest = 8.0 / np.sqrt(length * 32)
        assert part.abs().max() <= largest
        assert part.std() == pytest.approx(largest / np.sqrt(3), rel=0.15)
        assert abs(part.mean()) < largest / np.sqrt(3) * 4 / np.sqrt(part.numel())
    longest = values[: LENGTHS[0]] / (8.0 / np.sqrt(LENGTHS[0] * 32))
    counts = torch.histc(longest, 16, -1, 1) / longest.numel()
    assert counts.max() - counts.min() < 0.02
    neighbours = torch.corrcoef(torch.stack([longest[1:].flatten(), longest[:-1].flatten()]))[0, 1]
    channels = torch.corrcoef(torch.stack([longest[:, 1:].flatten(), longest[:, :-1].flatten()]))[0, 1]
    assert max(abs(neighbours), abs(channels)) < 0.05


def test_it_depends_on_the_document_and_the_seed_and_not_on_its_place():
    values, _ = noise()
    assert torch.equal(noise()[0], values)
    assert not torch.equal(noise(seed=6)[0], values)
    behind, _ = noise(rows=(make_row([7], seed=1), ROW))
    assert torch.equal(behind[7:], values)


def test_the_generator_is_splitmix64():
    """First outputs for the state 0, as published with the generator."""
    states = torch.arange(1, 4) * WEYL
    assert [value % 2**64 for value in mixed(states).tolist()] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize("family", ["qwen3", "nano", "gemma2"])
def test_logits_are_those_of_transformers_with_the_noise_added_to_its_embeddings(family):
    model = make_model(ARCHITECTURES[family]) if family in ARCHITECTURES else generic(family)
    oracle = oracle_of(model)
    values, batch = noise()
    model.noise = batch.noise
    with torch.no_grad():
        noisy = logits_of(model, batch)
        model.noise = None
        assert relative(noisy, logits_of(model, batch)) > 1e-3
        embed = oracle.get_input_embeddings()
        parts = zip(batch.input_ids.split(LENGTHS), values.split(LENGTHS), strict=True)
        expected = [oracle(inputs_embeds=(embed(ids) + added)[None]).logits[0] for ids, added in parts]
    assert relative(noisy, torch.cat(expected)) < 1e-5


@torch.no_grad()
def test_a_forward_pass_has_the_noise_of_its_own_batch_alone():
    model = make_model(ARCHITECTURES["qwen3"])
    _, batch = noise()
    plain = make_batch([ROW], "cpu")
    clean, noisy = (float(forward_loss(model, each)[0]) for each in (plain, batch))
    assert clean != noisy
    assert float(forward_loss(model, plain)[0]) == clean
