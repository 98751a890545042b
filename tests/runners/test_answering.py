"""How a run's model answers: in the precision that it computes in, with copies or as it is laid out."""

import pytest
import torch

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.config.compose import compose
from sft_hydra.config.resolve import resolve
from sft_hydra.engine.sharded_model import ShardedModel
from sft_hydra.evaluation.language_model import TransformersModel
from sft_hydra.models.build import KEEP_FP32
from sft_hydra.runners.answering import language_model
from sft_hydra.runners.build_model import new_model


def built(*overrides, is_trained=False):
    composed = compose(list(overrides))
    assert composed is not None
    cfg = resolve(composed.config, composed.overrides)
    tokenizer = load_tokenizer(cfg)
    return new_model(cfg, tokenizer, torch.device("cpu"), is_trained=is_trained).model, cfg, tokenizer


@pytest.mark.parametrize(("is_trained", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_weights_that_are_not_trained_are_kept_in_what_they_compute_in(is_trained, dtype):
    model, *_ = built("model=tiny_nemotron_h", "train.precision=bf16", is_trained=is_trained)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.rpartition(".")[2] in KEEP_FP32 else dtype)


@pytest.mark.parametrize(
    ("sharded", "kind"), [("true", ShardedModel), ("false", TransformersModel), ("null", TransformersModel)]
)
def test_eval_sharded_chooses(sharded, kind):
    assert isinstance(language_model(*built(f"eval.sharded={sharded}")), kind)


def test_batches_of_a_kv_cache_are_limited_in_tokens():
    model = language_model(*built("eval.sharded=true", "eval.batch_tokens=64"))
    assert isinstance(model, ShardedModel)
    assert model.limits.tokens == 64
