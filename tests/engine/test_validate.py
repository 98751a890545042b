"""Validation loss on a really packed set: token-weighted, per source, in bits per byte, on rows that stay the same."""

import json
import math

import numpy as np
import pytest
import torch
from support.packed import ARCHITECTURES, make_model

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.engine.validate import validate, validation_rows
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.data import DataConfig, SourceConfig, SplitConfig


def conversation(answer):
    return {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, answers in {
        "long": ["word " * 20 + str(i) for i in range(60)],
        "short": [str(i) for i in range(90)],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(conversation(answer)) + "\n" for answer in answers))
    return folder


@pytest.fixture
def cfg(make_cfg, sources, tmp_path):
    data = DataConfig(
        sources={name: SourceConfig(path=str(sources / f"{name}.jsonl")) for name in ("long", "short")},
        split=SplitConfig(train=0.4, valid=0.6, test=0.0),
        num_workers=1,
    )
    return make_cfg(data=data, seq_length=256, output_dir=str(tmp_path))


@pytest.fixture
def packed(cfg):
    return prepare(cfg, lambda *_: None)


@pytest.fixture
def model(cfg):
    return make_model(ARCHITECTURES["qwen3"] | {"vocab_size": load_tokenizer(cfg).vocab_size})


def test_losses_are_means_over_trained_tokens(cfg, packed, model):
    results = validate(model, packed, recipe_of(cfg), cfg.eval.tokens)
    sums, counts = np.zeros(2), np.zeros(2)
    with torch.no_grad():
        for i in range(packed.num_rows("valid")):
            batch = make_batch([packed.row("valid", i)], "cpu")
            source = int(batch.source_ids[0])
            sums[source] += forward_loss(model, batch)[0].item()
            counts[source] += batch.num_trained
    assert counts.min() > 0
    assert results["val/loss"] == pytest.approx(sums.sum() / counts.sum(), rel=1e-6)
    for i, name in enumerate(packed.sources):
        assert results[f"val/loss/{name}"] == pytest.approx(sums[i] / counts[i], rel=1e-6)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bits_per_byte_leave_control_tokens_out(cfg, packed, model):
    one_byte_each = np.ones(model.config.vocab_size)
    results = validate(model, packed, recipe_of(cfg), cfg.eval.tokens, one_byte_each)
    assert results["val/bpb"] == pytest.approx(results["val/loss"] / math.log(2), rel=1e-6)
    text = one_byte_each * 4
    text[load_tokenizer(cfg).end_of_turn_ids] = 0
    assert validate(model, packed, recipe_of(cfg), cfg.eval.tokens, text)["val/bpb"] != pytest.approx(
        results["val/bpb"] / 4, rel=1e-3
    )


def test_a_limit_in_tokens_takes_the_same_rows_every_time(cfg, packed):
    lengths = packed.row_tokens("valid")
    rows = validation_rows(packed, int(lengths.sum()) // 2)
    assert rows == validation_rows(packed, int(lengths.sum()) // 2)
    assert lengths.sum() / 2 <= lengths[rows].sum() < lengths.sum()
    assert validation_rows(packed, None) == validation_rows(packed, 10**9) == list(range(len(lengths)))


def test_without_a_validation_split_there_is_no_loss(cfg, model):
    cfg.data.split = SplitConfig(train=1.0, valid=0.0, test=0.0)
    assert validate(model, prepare(cfg, lambda *_: None), recipe_of(cfg), cfg.eval.tokens) == {}
