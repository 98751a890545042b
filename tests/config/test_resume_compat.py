"""The same folder again: what may change, what may not, and what a reading runner takes from the run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sft_hydra.config import serialize
from sft_hydra.errors import ConfigError
from sft_hydra.paths import RunPaths
from sft_hydra.schema.config import SftConfig

Resolved = Callable[..., SftConfig]


@pytest.fixture
def run(resolved: Resolved) -> RunPaths:
    """A run of 10 steps that has a checkpoint."""
    cfg = resolved("name=mine", "train.train_iters=10", "seq_length=128")
    paths = RunPaths(Path(str(cfg.run_dir)))
    serialize.save(cfg, paths.resolved)
    (paths.checkpoints / "step_10").mkdir(parents=True)
    return paths


SAME = ["name=mine", "train.train_iters=10", "seq_length=128"]


@pytest.mark.parametrize(
    "change",
    [
        [],
        ["train.train_iters=20"],
        ["eval.every=5", "checkpoint.interval=3", "train.micro_batch_size=2", "device=cpu"],
        ["logger=wandb", "parallel=single", "cluster.partition=batch", "dry_run=true"],
    ],
)
def test_may_change(change: list[str], run: RunPaths, resolved: Resolved) -> None:
    assert resolved(*SAME, *change).run_dir == str(run.root)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("optimizer.lr=0.5", "optimizer.lr: 0.01 there, 0.5 here"),
        ("seed=1", "seed: 1234 there, 1 here"),
        ("model.init_std=0.1", "model.init_std: 0.02 there, 0.1 here"),
        ("data.sources.train.format=openai", "data.sources.train.format: null there, openai here"),
        ("peft=lora", "peft.dim: null there, 32 here"),
        ("train.train_iters=5", "train.train_iters: 10 there, 5 here (may only grow)"),
        ("train.global_batch_size=8", "train.global_batch_size: 4 there, 8 here"),
    ],
)
def test_may_not_change(change: str, shown: str, run: RunPaths, resolved: Resolved) -> None:
    with pytest.raises(ConfigError) as refusal:
        resolved(*SAME, change)
    assert shown in str(refusal.value)
    assert "choose another name=..." in str(refusal.value)


def test_a_folder_without_checkpoint_may_be_tried_again(run: RunPaths, resolved: Resolved) -> None:
    (run.checkpoints / "step_10").rmdir()
    assert resolved(*SAME, "seed=1").seed == 1


def test_reading_runner_takes_the_run_as_it_was(run: RunPaths, resolved: Resolved) -> None:
    cfg = resolved(
        "runner=generate", "name=mine", "generate.prompts=[hi]", "device=cpu", "eval.exact_match.max_items=3"
    )
    assert (cfg.seq_length, cfg.train.train_iters, cfg.run_dir) == (128, 10, str(run.root))
    assert (cfg.generate.prompts, cfg.device.value, cfg.eval.exact_match.max_items) == (["hi"], "cpu", 3)
    assert cfg.runner.value == "generate"


def test_reading_runner_is_not_told_otherwise(run: RunPaths, resolved: Resolved) -> None:
    with pytest.raises(ConfigError, match=r"seq_length: 64, but the run in outputs/mine has 128; remove it"):
        resolved("runner=generate", "name=mine", "seq_length=64")
    assert resolved("runner=generate", "name=mine", "seq_length=128").seq_length == 128


def test_job_of_a_sweep_is_read_by_its_folder(run: RunPaths, resolved: Resolved) -> None:
    job = run.root / "seed=1"
    job.mkdir()
    (job / "resolved.yaml").write_text(run.resolved.read_text())
    cfg = resolved("runner=generate", "name=mine/seed=1")
    assert (cfg.run_dir, cfg.seq_length) == ("outputs/mine/seed=1", 128)
