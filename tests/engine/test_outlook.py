"""What looks like a mistake is told before training, in the dry run and when training starts."""

from pathlib import Path
from typing import Any

import pytest

from sft_hydra.cli import command
from sft_hydra.engine.outlook import plan_warnings
from sft_hydra.planning.architecture import trained_positions
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.config import SftConfig

SMALL = (
    "eval.exact_match.path=null", "eval.samples=[]", "export.auto=false", "seq_length=128", "train.global_batch_size=8",
    "data=jsonl", "data.path=one.jsonl", "data.split.train=1", "data.split.valid=0", "data.split.test=0", "device=cpu",
    "data.num_workers=1",
)  # fmt: skip


@pytest.fixture
def one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n'
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train.train_iters=5", "scheduler.warmup_iters=5", "scheduler.warmup_ratio=null"], "warm-up takes 5 steps and training has 5"),
        (["train.train_iters=10", "scheduler=wsd", "scheduler.decay_ratio=1", "scheduler.warmup_ratio=0.5"], "warm-up (5 steps) and decay (10)"),
        (["model.architecture.max_position_embeddings=64"], "seq_length=128 is more than the 64 positions"),
    ],
)  # fmt: skip
def test_a_dry_run_tells(argv: list[str], expected: str, one_row: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([*SMALL, *argv, "dry_run=true"]) == 0
    assert expected in capsys.readouterr().out


def test_a_training_tells_before_it_starts(one_row: None, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*SMALL, "train.train_iters=1", "eval.every=0", "name=run", "model.architecture.max_position_embeddings=8"]
    assert command([*argv, "data.prepare=auto"]) == 0
    log = " ".join(Path("outputs/run/log.txt").read_text().split())
    assert "one step takes 8 rows and an epoch has 1: every row is in each step 8 times" in log
    assert "the model 8 positions (max_position_embeddings)" in log
    capsys.readouterr()
    assert command([*argv, "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert "one step takes 8 rows and an epoch has 1" in out
    assert "the model 8 positions" in out


def test_positions_of_a_model() -> None:
    assert trained_positions({"max_position_embeddings": 100}) == 100
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}
    assert trained_positions({"max_position_embeddings": 100, "rope_scaling": yarn}) == 400
    assert trained_positions({"model_type": "nemotron_h", "max_position_embeddings": 100}) is None
    assert trained_positions({}) is None


DENSE = {"model_type": "qwen3", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 100_000}  # fmt: skip
MIXTURE = DENSE | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 128}


@pytest.mark.parametrize(
    ("compiled", "architecture", "expected"),
    [(False, DENSE, ["set train.compile=true"]), (True, DENSE, []), (True, MIXTURE, ["in routed experts"])],
)
def test_fp8_that_cannot_pay(compiled: bool, architecture: dict[str, Any], expected: list[str]) -> None:
    cfg = SftConfig()
    cfg.train.fp8, cfg.train.compile = True, compiled
    told = list(plan_warnings(recipe_of(cfg), architecture, None))
    assert len(told) == len(expected)
    assert all(part in text for part, text in zip(expected, told, strict=True))
