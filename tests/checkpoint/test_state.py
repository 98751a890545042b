"""Saving and resuming a run: step by step the same as without the interruption, and never from half a checkpoint."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from support.checkpoints import latest_in
from support.packed import ARCHITECTURES, make_model, make_row

from sft_hydra.checkpoint.state import latest, load, save
from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.errors import CheckpointError
from sft_hydra.models.lora import apply_lora
from sft_hydra.paths import find_checkpoint
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.peft import LoraConfig


@pytest.fixture
def rows():
    return [make_row([5 + i % 7, 20, 3], seed=i) for i in range(60)]


ALL_OF_LORA = LoraConfig(dim=4, dropout=0.1, use_dora=True, init_lora_weights="pissa", modules_to_save=["embed_tokens"])


def start(cfg, architecture="qwen3"):
    model = make_model(ARCHITECTURES[architecture])
    if cfg.peft is not None:
        apply_lora(model, cfg.peft, cfg.seed)
    return model, build_optimizer(model, cfg.optimizer, cfg.train.precision), TrainState()


def train(model, optimizer, state, cfg, rows, until):
    losses = []
    train_loop(
        model,
        optimizer,
        rows,
        state,
        recipe_of(cfg),
        8,
        after_step=lambda result: losses.append((result.loss, result.lr)),
        should_stop=lambda: state.step == until,
    )
    return losses


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("peft", [None, ALL_OF_LORA], ids=["full", "lora"])
def test_resumed_equals_straight(make_cfg, rows, tmp_path, optimizer, peft):
    cfg = make_cfg(optimizer, peft=peft)
    cfg.train.neftune_alpha = 5.0
    model, moments, state = start(cfg)
    straight = train(model, moments, state, cfg, rows, 8)

    first, moments, state = start(cfg)
    begun = train(first, moments, state, cfg, rows, 3)
    save(tmp_path, first, moments, state, recipe_of(cfg), cfg.checkpoint)
    second, moments, _ = start(cfg)
    state = load(latest_in(tmp_path), second, moments)
    resumed = begun + train(second, moments, state, cfg, rows, 8)

    assert resumed == straight
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second.parameters(), strict=True))
    assert state.rows_consumed == 32


def test_lora_saves_adapters_only(make_cfg, rows, tmp_path):
    cfg = make_cfg(peft=LoraConfig(dim=4))
    model, moments, state = start(cfg)
    train(model, moments, state, cfg, rows, 1)
    checkpoint = save(tmp_path, model, moments, state, recipe_of(cfg), cfg.checkpoint)
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (checkpoint / "model-00000.safetensors").stat().st_size < 4 * adapters + 12_000
    with pytest.raises(CheckpointError, match="only LoRA adapters"):
        load(checkpoint, make_model(ARCHITECTURES["qwen3"]), None)


def test_keeps_the_newest_and_finds_what_the_user_means(make_cfg, tmp_path):
    cfg = make_cfg()
    model, moments, state = start(cfg)
    folder = tmp_path / "run" / "checkpoints"
    for step in (2, 10, 9, 11):
        state.step = step
        save(folder, model, moments, state, recipe_of(cfg), cfg.checkpoint)
    assert sorted(path.name for path in folder.iterdir()) == ["step_10", "step_11"]
    found = [find_checkpoint(path) for path in (tmp_path / "run", folder, folder / "step_11")]
    assert found == [folder / "step_11"] * 3
    (folder / "step_11" / "COMPLETE").unlink()
    assert latest(folder) == folder / "step_10"
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        find_checkpoint(tmp_path)


def test_a_checkpoint_of_another_model_is_refused_with_names_and_shapes(make_cfg, tmp_path):
    cfg = make_cfg()
    model, moments, state = start(cfg)
    checkpoint = save(tmp_path, model, moments, state, recipe_of(cfg), cfg.checkpoint)
    with pytest.raises(CheckpointError, match=r"q_proj.bias") as caught:
        load(checkpoint, make_model(ARCHITECTURES["qwen2"]), None)
    assert len(caught.value.problems) > 1
    wider = make_model(ARCHITECTURES["qwen3"] | {"intermediate_size": 64})
    with pytest.raises(CheckpointError, match=r"down_proj.weight has shape \(32, 48\), in the model \(32, 64\)"):
        load(checkpoint, wider, None)


def test_a_whole_model_fills_the_base_of_an_adapted_one(make_cfg, tmp_path):
    cfg = make_cfg()
    whole, moments, state = start(cfg)
    checkpoint = save(tmp_path, whole, moments, state, recipe_of(cfg), cfg.checkpoint)
    cfg.peft = LoraConfig(dim=4)
    adapted = make_model(ARCHITECTURES["qwen3"], seed=1)
    apply_lora(adapted, cfg.peft, cfg.seed)
    load(checkpoint, adapted, None)
    state = adapted.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.state_dict().items())


def test_the_state_of_another_optimizer_is_refused(make_cfg, rows, tmp_path):
    cfg = make_cfg()
    model, moments, state = start(cfg)
    train(model, moments, state, cfg, rows, 1)
    checkpoint = save(tmp_path, model, moments, state, recipe_of(cfg), cfg.checkpoint)
    cfg = make_cfg("muon")
    with pytest.raises(CheckpointError, match=r"state of AdamW, but this run's optimizer is Muon\+AdamW"):
        load(checkpoint, model, build_optimizer(model, cfg.optimizer, cfg.train.precision))


@pytest.mark.parametrize("killed_in", ["write_shards", "_flush", "_remove"])
def test_a_save_that_is_killed_never_becomes_the_latest(tmp_path, repo, killed_in):
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path[:0] = [{str(repo)!r}, {str(repo / "tests")!r}]
        from pathlib import Path
        from support.packed import ARCHITECTURES, make_model
        from sft_hydra.checkpoint import state
        from sft_hydra.schema.config import SftConfig
        from sft_hydra.engine.loop import TrainState
        from sft_hydra.engine.optimizer import build_optimizer
        from sft_hydra.planning.recipe import recipe_of
        cfg, model = SftConfig(), make_model(ARCHITECTURES["qwen3"])
        optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
        state.save(Path(sys.argv[1]), model, optimizer, TrainState(step=1), recipe_of(cfg), cfg.checkpoint)
        state.{killed_in} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        state.save(Path(sys.argv[1]), model, optimizer, TrainState(step=2), recipe_of(cfg), cfg.checkpoint)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert latest_in(tmp_path).name == "step_1"
