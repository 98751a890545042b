"""What a user reads when a device's memory is not enough: a named error with changes that the config accepts."""

import dataclasses
from pathlib import Path

import pytest
import torch

from sft_hydra.errors import OutOfMemoryError
from sft_hydra.launch.dry_run import describe
from sft_hydra.planning.estimate import GIB, estimate_memory, savings
from sft_hydra.planning.topology import run_layout
from sft_hydra.runners.oom import explain_oom
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.optim import AdamW, Muon
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Precision

QWEN = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
SAID = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 39.39 GiB of which 1.06 GiB is free. "
    "Process 1 has 38.00 GiB memory in use. See documentation for Memory Management"
)


@pytest.fixture
def cfg() -> SftConfig:
    cfg = SftConfig(model=ModelConfig(name="test", architecture=QWEN))
    cfg.train.micro_batch_size = 4
    return cfg


def test_each_change_saves_what_it_says(cfg: SftConfig) -> None:
    found = dict(savings(cfg, QWEN, Precision.bf16))
    now = estimate_memory(cfg, QWEN, run_layout(cfg, QWEN), Precision.bf16).total
    smaller = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, micro_batch_size=2))
    adapted = dataclasses.replace(cfg, peft=LoraConfig())
    rounded = dataclasses.replace(cfg, optimizer=AdamW(state_bits=8))
    changes = {"train.micro_batch_size=2": smaller, "peft=lora": adapted, "optimizer.state_bits=8": rounded}
    for text, changed in changes.items():
        assert found[text] == now - estimate_memory(changed, QWEN, run_layout(changed, QWEN), Precision.bf16).total
    assert {"cluster.gpus_per_node=2", "seq_length=2048"} <= found.keys()
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_nothing_is_advised_that_cannot_be_done(cfg: SftConfig) -> None:
    cfg.train.micro_batch_size, cfg.peft = 1, LoraConfig()
    advised = dict(savings(cfg, QWEN, Precision.bf16))
    assert not {"train.micro_batch_size=0", "peft=lora"} & advised.keys()
    assert "train.recompute=full" in advised
    cfg.peft, cfg.optimizer = None, Muon()
    assert not any(text.startswith("optimizer.") for text, _ in savings(cfg, QWEN, Precision.bf16))


def test_eight_bits_of_what_every_token_meets(cfg: SftConfig) -> None:
    """All matrices but the embedding, which is tied: a fourth of the state, and the scales of blocks."""
    found = []
    for bits in (32, 8):
        cfg.optimizer = AdamW(state_bits=bits)
        found.append(estimate_memory(cfg, QWEN, run_layout(cfg, QWEN), Precision.bf16).optimizer)
    embedding = 8 * QWEN["vocab_size"] * QWEN["hidden_size"]  # type: ignore[operator]
    assert found[1] - embedding == pytest.approx((found[0] - embedding) / 4 * (1 + 4 / 256), rel=1e-6)


def test_out_of_memory_is_told_with_what_helps(cfg: SftConfig) -> None:
    with (
        pytest.raises(OutOfMemoryError) as told,
        explain_oom(cfg, QWEN, torch.device("cuda")),
    ):
        raise torch.OutOfMemoryError(SAID)
    first, *helps, last = told.value.problems
    needed = estimate_memory(cfg, QWEN, run_layout(cfg, QWEN), Precision.bf16).total / GIB
    assert first == (
        "oom: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 39.39 GiB of which 1.06 GiB is "
        f"free; this run is estimated to need {needed:.2f} GiB per rank"
    )
    assert [text.split(" would save about ")[0] for text in helps] == [s[0] for s in savings(cfg, QWEN, Precision.bf16)]
    assert "train.global_batch_size does not matter" in last
    assert told.value.describe().startswith("Stopped (oom):")


@pytest.mark.parametrize(("rows", "said"), [(16, "train.micro_batch_size=8 saves "), (1, "")])
def test_a_dry_run_advises_when_memory_is_tight(cfg: SftConfig, rows: int, said: str) -> None:
    cfg.model.path, cfg.run_dir, cfg.dry_run = "nobody/qwen", "outputs/x", True
    cfg.tokenizer.path = "nobody"  # not within reach
    cfg.train.train_iters, cfg.train.micro_batch_size = 10, rows
    advice = [line for line in describe(cfg).splitlines() if line.startswith("advice: ")]
    assert bool(advice) == bool(said)
    assert all(said in line for line in advice)


def test_other_errors_pass(cfg: SftConfig) -> None:
    with pytest.raises(RuntimeError, match="another"), explain_oom(cfg, QWEN, torch.device("cpu")):
        raise RuntimeError("another")


@pytest.mark.gpu
def test_a_device_that_is_full_tells(cfg: SftConfig, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with (
        pytest.raises(OutOfMemoryError, match="oom: CUDA out of memory"),
        explain_oom(cfg, QWEN, torch.device("cuda")),
    ):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
