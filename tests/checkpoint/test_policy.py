"""Which checkpoints are kept, and what a training takes from the one that it loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.packed import ARCHITECTURES, RowList, make_model, make_row

from sft_hydra.checkpoint.state import load, load_optimizer, save
from sft_hydra.cli import command
from sft_hydra.config import serialize
from sft_hydra.engine.loop import TrainState, optimizer_step
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.errors import ConfigError, UserError
from sft_hydra.observe.metrics import read_metrics
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.optim import Muon

SMALL = [
    "data.sample=40", "data.num_workers=1", "data.split={train:0.8,valid:0.2,test:0.0}", "eval.exact_match.path=null",
    "eval.samples=[]", "export.auto=false", "model.architecture.hidden_size=32", "model.architecture.intermediate_size=32",
]  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("metric", "best"), [("val/loss", "step_2"), ("eval/exact_match", "step_3"), ("loss", "step_1")]
)
def test_the_best_is_kept_beside_the_newest(make_cfg, tmp_path, metric, best):
    cfg = make_cfg()
    cfg.checkpoint.keep_best, cfg.checkpoint.keep_last = metric, 2
    model = make_model(ARCHITECTURES["qwen3"])
    moments = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    losses = {1: 5.0, 2: 3.0, 3: 9.0, 4: 4.0, 5: 3.0, 6: 8.0, 7: 7.0}
    for step, value in losses.items():
        measured = {"val/loss": value, "eval/exact_match": value} | ({"loss": 1.0} if step == 1 else {})
        save(tmp_path, model, moments, TrainState(step=step), recipe_of(cfg), cfg.checkpoint, measured)
    assert names(tmp_path) == [best, "step_6", "step_7"]


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """The folder of a run with validation at every checkpoint."""
    folder = tmp_path_factory.mktemp("first")
    assert command([
        *SMALL, f"output_dir={folder}", "name=first", "train.train_iters=6", "checkpoint.interval=1", "checkpoint.keep_last=1",
        "checkpoint.keep_best=val/loss", "eval.every=null", "optimizer.lr=0.3", "optimizer.matrix_lr=0.3",
    ]) == 0  # fmt: skip
    return folder / "first"


def test_a_run_keeps_its_best_by_validation(first: Path) -> None:
    measured = {line["step"]: line["val/loss"] for line in read_metrics(first / "metrics.jsonl") if "val/loss" in line}
    assert sorted(measured) == [0, 1, 2, 3, 4, 5, 6]
    del measured[0]  # of the start there is no checkpoint
    best = min(measured, key=lambda step: measured[step])
    assert names(first / "checkpoints") == sorted({f"step_{best}", "step_6"})
    state = json.loads((first / "checkpoints" / f"step_{best}" / "state.json").read_text())
    assert state["metrics"]["val/loss"] == measured[best]


def test_an_unknown_metric_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"keep_best=val/lss is not a metric of this training; choose one of loss, loss/drill"
    ):
        command([*SMALL, f"output_dir={tmp_path}", "name=run", "train.train_iters=2", "checkpoint.keep_best=val/lss"])
    assert not (tmp_path / "run/checkpoints").exists()


def test_without_an_interval_only_the_last_is_saved(first: Path, tmp_path: Path) -> None:
    written = []
    assert command([
        *SMALL, f"output_dir={tmp_path}", "name=last", "train.train_iters=3", "checkpoint.interval=null", "eval.every=1",
        "checkpoint.keep_last=9",
    ]) == 0  # fmt: skip
    written = names(tmp_path / "last/checkpoints")
    assert written == ["step_3"]


def test_null_is_inherited_and_the_optimizer_goes_on_warm(first: Path, tmp_path: Path, capsys) -> None:
    assert command([
        *SMALL, f"output_dir={tmp_path}", "name=second", "train.train_iters=1", f"checkpoint.load={first}",
        "checkpoint.load_optimizer=true", "train.global_batch_size=null", "train.micro_batch_size=null", "seq_length=null",
        "optimizer.lr=null", "optimizer.matrix_lr=null", "optimizer.init_lr_frac=0.1", "scheduler=constant",
    ]) == 0  # fmt: skip
    assert "with its optimizer state" in capsys.readouterr().out
    cfg = serialize.load(tmp_path / "second/resolved.yaml")
    assert (cfg.seq_length, cfg.train.global_batch_size, cfg.train.micro_batch_size) == (256, 4, 4)
    assert isinstance(cfg.optimizer, Muon)
    assert (cfg.optimizer.lr, cfg.optimizer.matrix_lr) == (0.3, 0.3)
    (step,) = [line for line in read_metrics(tmp_path / "second/metrics.jsonl") if "lr" in line]
    assert step["lr"] == pytest.approx(0.03)
    moments = load_file(tmp_path / "second/checkpoints/step_1/optimizer-00000.safetensors")
    assert moments["model.norm.weight/step"].item() == 7  # six steps of the first run


def test_null_without_a_checkpoint_is_refused_with_all_keys() -> None:
    with pytest.raises(UserError) as refused:
        command([*SMALL, "name=x", "optimizer.lr=null", "seq_length=null", "dry_run=true"])
    assert refused.value.problems == [
        "seq_length=null takes the value from checkpoint.load, but checkpoint.load is not set; set e.g. seq_length=4096",
        "optimizer.lr=null takes the value from checkpoint.load, but checkpoint.load is not set; set e.g. optimizer.lr=1e-05",
    ]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_warm_start_takes_moments_but_no_rates(make_cfg, tmp_path, kind):
    rows = RowList(make_row([5 + i % 7, 20, 3], seed=i) for i in range(20))
    cfg = make_cfg(kind)
    model = make_model(ARCHITECTURES["qwen3"])
    moments = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    state = TrainState()
    for _ in range(3):
        optimizer_step(model, moments, rows, state, recipe_of(cfg), 8)
    checkpoint = save(tmp_path, model, moments, state, recipe_of(cfg), cfg.checkpoint)

    cfg.optimizer.lr = 7e-4
    second = make_model(ARCHITECTURES["qwen3"], seed=1)
    load(checkpoint, second, None)
    warm = build_optimizer(second, cfg.optimizer, cfg.train.precision)
    load_optimizer(checkpoint, second, warm)
    for theirs, ours in zip(model.parameters(), second.parameters(), strict=True):
        saved_state, loaded = moments.state_of(theirs), warm.state_of(ours)
        assert saved_state.keys() == loaded.keys()
        assert saved_state
        assert all(torch.equal(saved_state[key], loaded[key]) for key in saved_state)
    assert {
        group["lr"] for part in warm.parts if isinstance(part, torch.optim.AdamW) for group in part.param_groups
    } == {7e-4}
