"""What benchmarks/train_step.py measures: models of true shapes with random weights, rows of real chats, and what a step
of them costs in FLOPs."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.data_prep.blend import train_rows
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.paths import conf_dir
from sft_hydra.planning.estimate import PEAK_FLOPS, count_parameters
from sft_hydra.records import PackedRow
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import SourceConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.optim import AdamW, Scheduler
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Precision

TINY = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one size of rows. `rows` are those of an optimizer step, `micro` those of one forward pass."""

    architecture: dict[str, Any]
    seq_length: int
    rows: int
    micro: int
    device: str
    lora: bool = False
    demo_tokenizer: bool = False
    peers: tuple[str, ...] = ("trl", "transformers")
    options: dict[str, Any] = field(default_factory=dict)  # fields of our TrainConfig


def published(name: str) -> dict[str, Any]:
    """The architecture of a model in conf/model."""
    fields = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"))
    assert isinstance(fields, dict)
    return dict(fields["architecture"])


def cases() -> dict[str, Case]:
    vocab = {"vocab_size": 151936}
    # With all 128 experts weights and their optimizer's state alone are 71 GiB.
    nano = published("nano3") | {"hybrid_override_pattern": "MEMEM*EM", "num_hidden_layers": 8, "n_routed_experts": 64}
    return {
        "rehearsal": Case(
            TINY | {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 512}, 128, 2, 1, "cpu", peers=()
        ),
        "tiny": Case(TINY | vocab, 1024, 2, 1, "cpu"),
        "tiny_small_vocab": Case(TINY, 2048, 2, 1, "cpu", demo_tokenizer=True),
        "qwen3_0_6b_full": Case(published("qwen3_0_6b"), 4096, 8, 4, "cuda"),
        "qwen3_8b_lora": Case(published("qwen3_8b"), 4096, 4, 2, "cuda", lora=True),
        # peers leak state between packed conversations in this family: there is nothing equal to time
        "nano3_cut": Case(nano, 4096, 4, 1, "cuda", peers=()),
    }


def make_cfg(case: Case) -> SftConfig:
    """Plain AdamW without decay at a constant rate, which all frameworks compute alike."""
    cfg = SftConfig(
        model=ModelConfig(name="benchmark", architecture=case.architecture),
        seq_length=case.seq_length,
        optimizer=AdamW(lr=1e-4, weight_decay=0.0, betas=[0.9, 0.999], eps=1e-8),
        scheduler=Scheduler(kind="constant"),
        peft=LoraConfig(dim=16, alpha=32) if case.lora else None,
    )
    cfg.train = replace(
        cfg.train,
        global_batch_size=case.rows,
        micro_batch_size=case.micro,
        precision=Precision.bf16 if case.device == "cuda" else Precision.fp32,
        **case.options,
    )
    return cfg


def real_rows(
    case: Case, chat: Path, tokenizer: Path, count: int, data: Path | None = None
) -> tuple[list[PackedRow], int]:
    """`count` packed rows of the conversations in a folder of JSONL files that fit a row, and the number of ids of their
    tokenizer. What is prepared is kept in `data`, and found there the next time."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = replace(make_cfg(case), output_dir=str(data or folder))
        cfg.tokenizer.path = "demo" if case.demo_tokenizer else str(tokenizer)
        cfg.data.num_workers = 1
        cfg.data.sources = {"chat": SourceConfig(path=str(chat / "*.jsonl"))}
        rows = train_rows(prepare(cfg), cfg)
        return [rows[i] for i in range(count)], load_tokenizer(cfg).vocab_size


def lengths(row: PackedRow) -> np.ndarray:
    """Tokens of each conversation of a row."""
    return np.diff(row.seq_start_id, append=len(row.input_ids))


def step_flops(case: Case, rows: list[PackedRow]) -> dict[str, float]:
    """FLOPs of training on `rows`, counted in two ways.

    needed: 6 per matrix parameter and token (4 where the base is frozen), the head's for trained tokens alone, and causal
    attention inside each conversation, 6 * layers * width * length^2. The scan of Mamba is not counted.
    published: as most figures in print: the head's for every token, attention over whole rows of `seq_length`.
    """
    arch, factor = case.architecture, 4 if case.lora else 6
    head = arch["vocab_size"] * arch["hidden_size"]
    lookup = 0 if arch.get("tie_word_embeddings") else head
    body = count_parameters(arch).active - lookup - head
    pattern = arch.get("hybrid_override_pattern")
    layers = pattern.count("*") if pattern else arch["num_hidden_layers"]
    width = arch["num_attention_heads"] * arch["head_dim"]
    tokens = sum(len(row.input_ids) for row in rows)
    trained = sum(int(row.loss_mask.sum()) for row in rows)
    square = sum(float(np.square(lengths(row), dtype=np.float64).sum()) for row in rows)
    return {
        "needed": factor * (body * tokens + head * trained) + 6 * layers * width * square,
        "published": factor * (body + head) * tokens + 6 * layers * width * tokens * case.seq_length,
    }


def peak_flops(device: str) -> tuple[float, str]:
    """FLOPs a second that the device can do, and how we know."""
    if device == "cuda":
        return PEAK_FLOPS, "989e12, bf16 dense of an H100 or H200"
    seconds = min(product_seconds())
    return 2 * 2048**3 / seconds, "fastest of ten fp32 products of 2048 x 2048 matrices on these threads"


def product_seconds() -> Iterator[float]:
    from time import perf_counter

    a = torch.randn(2048, 2048)
    for _ in range(10):
        started = perf_counter()
        a @ a
        yield perf_counter() - started
