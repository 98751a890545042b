"""Checkpoints of moments in eight bits: a run goes on bit for bit, and from fp32 to eight bits and back."""

import sys

import pytest
import torch
from safetensors import safe_open
from support.checkpoints import latest_in
from support.packed import ARCHITECTURES, RowList, make_model, make_row

from sft_hydra.checkpoint.state import load, save
from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.errors import CheckpointError
from sft_hydra.models.lora import apply_lora
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.peft import LoraConfig

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 128}
STEPS, SAVED_AFTER = 4, 2
ROWS = RowList(make_row([5 + i % 7, 20, 3], seed=i) for i in range(4 * STEPS))


@pytest.fixture(autouse=True)
def torchao():
    pytest.importorskip("torchao.optim", reason="needs torchao (the extra `speed`)")


def start(cfg, bits):
    cfg.optimizer.state_bits = bits
    model = make_model(ARCHITECTURES["qwen2"] | WIDE)
    if cfg.peft is not None:
        apply_lora(model, cfg.peft, cfg.seed)
    return model, build_optimizer(model, cfg.optimizer, cfg.train.precision)


def train(model, optimizer, state, cfg, until):
    losses = []
    train_loop(
        model, optimizer, ROWS, state, recipe_of(cfg), STEPS,
        after_step=lambda result: losses.append(result.loss), should_stop=lambda: state.step == until,
    )  # fmt: skip
    return losses


def begin(cfg, bits, folder):
    """Train up to SAVED_AFTER, save, and go on. Returns the losses after that, model and optimizer."""
    model, optimizer = start(cfg, bits)
    state = TrainState()
    train(model, optimizer, state, cfg, SAVED_AFTER)
    save(folder, model, optimizer, state, recipe_of(cfg), cfg.checkpoint)
    return train(model, optimizer, state, cfg, STEPS), model, optimizer


def go_on(cfg, bits, folder):
    model, optimizer = start(cfg, bits)
    state = load(latest_in(folder), model, optimizer)
    return train(model, optimizer, state, cfg, STEPS), model, optimizer


def moments_of(model, optimizer):
    """In fp32."""
    return {
        f"{name}/{kind}": moment.dequantize() if type(moment).__name__ == "OptimState8bit" else moment
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for kind, moment in optimizer.state_of(parameter).items()
    }


@pytest.mark.parametrize("peft", [None, LoraConfig(dim=64)], ids=["full", "lora"])
def test_resumed_equals_straight(make_cfg, tmp_path, peft):
    cfg = make_cfg(peft=peft)
    straight, model, optimizer = begin(cfg, 8, tmp_path)
    resumed, second, further = go_on(cfg, 8, tmp_path)
    assert resumed == straight
    assert further.rounded == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second.parameters(), strict=True))
    expected, found = moments_of(model, optimizer), moments_of(second, further)
    assert all(torch.equal(found[name], moment) for name, moment in expected.items())


def test_eight_bits_are_a_quarter_on_disk(make_cfg, tmp_path):
    cfg = make_cfg()
    sizes = {}
    for bits in (8, 32):
        begin(cfg, bits, tmp_path / str(bits))
        with safe_open(latest_in(tmp_path / str(bits)) / "optimizer-00000.safetensors", framework="pt") as file:
            names = [name for name in file.keys() if ".mlp.up_proj." in name and "/exp_avg" in name]  # noqa: SIM118
            sizes[bits] = sum(file.get_tensor(name).nbytes for name in names)
    assert sizes[8] == pytest.approx(sizes[32] / 4, rel=0.02)


def test_goes_on_in_eight_bits_from_fp32(make_cfg, tmp_path):
    cfg = make_cfg()
    straight, *_ = begin(cfg, 32, tmp_path)
    resumed, model, optimizer = go_on(cfg, 8, tmp_path)
    assert resumed == pytest.approx(straight, rel=1e-2)
    large = [
        p.numel()
        for name, p in model.named_parameters()
        if p.ndim == 2 and p.numel() >= 4096 and name != model.embedding_name
    ]
    assert optimizer.rounded == 2 * sum(large)


def test_goes_on_in_fp32_from_eight_bits(make_cfg, tmp_path):
    cfg = make_cfg()
    straight, *_ = begin(cfg, 8, tmp_path)
    coded, exact = start(cfg, 8), start(cfg, 32)
    for model, optimizer in (coded, exact):
        load(latest_in(tmp_path), model, optimizer)
    expected, found = moments_of(*coded), moments_of(*exact)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], moment) for name, moment in expected.items())
    assert exact[1].rounded == 0
    resumed, *_ = go_on(cfg, 32, tmp_path)
    assert resumed == pytest.approx(straight, rel=1e-2)


def test_without_torchao_eight_bits_are_not_read(make_cfg, tmp_path, monkeypatch):
    cfg = make_cfg()
    begin(cfg, 8, tmp_path)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(CheckpointError, match=r"state in 8 bits, which needs torchao: pip install 'torchao"):
        go_on(cfg, 32, tmp_path)
