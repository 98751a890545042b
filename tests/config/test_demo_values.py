"""What the bundled demo needs (short rows, small batches, one thread, its own evaluation) reaches no other combination of
model and data."""

import json
from pathlib import Path
from typing import Any

import pytest

from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import DataConfig, RowOrder
from sft_hydra.schema.eval import EvalConfig
from sft_hydra.schema.train import TrainConfig

USUAL = SftConfig()


def demo_values(cfg: SftConfig) -> dict[str, object]:
    """Those keys that the demo sets, where they are not the defaults of the schema."""
    pairs: list[tuple[str, Any, Any]] = [
        ("seq_length", cfg.seq_length, USUAL.seq_length),
        ("train.micro_batch_size", cfg.train.micro_batch_size, TrainConfig().micro_batch_size),
        ("train.global_batch_size", cfg.train.global_batch_size, TrainConfig().global_batch_size),
        ("train.num_threads", cfg.train.num_threads, TrainConfig().num_threads),
        ("data.order", cfg.data.order, DataConfig().order),
        ("eval.exact_match.path", cfg.eval.exact_match.path, EvalConfig().exact_match.path),
        ("eval.tools", cfg.eval.tools, EvalConfig().tools),
        ("eval.samples", cfg.eval.samples, EvalConfig().samples),
    ]
    pairs += [(f"data.sources.{name}.epochs", source.epochs, None) for name, source in cfg.data.sources.items()]
    return {key: value for key, value, usual in pairs if value != usual}


@pytest.mark.parametrize(
    "arguments",
    [[], ["peft=lora"], ["optimizer=adamw"], ["train.train_iters=5"], ["model=tiny_nemotron_h"], ["data=demo", "model=tiny"]],
)  # fmt: skip
def test_the_toys_have_them_on_the_bundled_data(resolved, arguments):
    cfg = resolved(*arguments)
    assert demo_values(cfg).keys() >= {"train.num_threads", "eval.exact_match.path", "eval.tools", "eval.samples"}
    assert (cfg.seq_length, cfg.train.micro_batch_size, cfg.data.order) == (256, 4, RowOrder.by_source)


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=nano3", "peft=lora"], ["model=qwen3_0_6b"], ["model=qwen3_8b", "data=demo"], ["model=hf", "model.path=org/name"],
        ["model.path=org/name"], ["model.path=org/name", "peft=lora"], ["model=super3", "parallel=single"],
        ["model=qwen3_0_6b", "data.packed_dir=there"], ["model=qwen3_0_6b", "data=jsonl", "data.path=chats.jsonl"],
        ["model=tiny_nemotron_h", "data=squad"],
    ],
)  # fmt: skip
def test_no_other_pair_has_them(resolved, arguments):
    Path("chats.jsonl").touch()
    assert demo_values(resolved(*arguments)) == {}


def test_the_tiny_model_on_other_data_has_a_batch_of_its_own_alone(resolved):
    Path("chats.jsonl").touch()
    assert demo_values(resolved("data=jsonl", "data.path=chats.jsonl")) == {"train.global_batch_size": 2}


def test_a_command_for_a_large_model_has_the_length_it_says(resolved):
    cfg = resolved("model=nano3", "peft=lora", "seq_length=8192")
    assert demo_values(cfg) == {"seq_length": 8192}


def test_a_model_path_alone_has_no_rates_of_the_toy(resolved):
    cfg = resolved("model.path=org/name")
    assert (cfg.model.name, cfg.optimizer.kind, cfg.scheduler.kind) == ("hf", "adamw", "cosine")
    assert resolved("model=tiny", "model.path=null").model.name == "tiny"


@pytest.mark.parametrize("others", [[], ["model=qwen3_0_6b"], ["experiment=nemo_rl", "data=demo"]])
def test_a_packed_set_brings_its_length(resolved, others):
    Path("packed").mkdir()
    Path("packed/metadata.json").write_text(json.dumps({"format_version": 1, "pack_size": 512}))
    assert resolved("data.packed_dir=packed", *others).seq_length == 512
    assert resolved("data.packed_dir=packed", "seq_length=512", *others).seq_length == 512
    assert resolved("data.packed_dir=new").seq_length == 256
