"""Moments in eight bits: training goes as with fp32, they take a quarter of the memory, and no weight leaps."""

import dataclasses
import sys

import pytest
import torch
from support.packed import ARCHITECTURES, RowList, make_model, make_row

from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.optimizer import build_optimizer, check_state_bits
from sft_hydra.errors import ConfigError
from sft_hydra.models.lora import apply_lora
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.optim import AdamW
from sft_hydra.schema.peft import LoraConfig

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 256}
STEPS = 16


@pytest.fixture
def torchao():
    pytest.importorskip("torchao.optim", reason="needs torchao (the extra `speed`)")


def train(make_cfg, bits, family="qwen3", lora=None, steps=STEPS, device="cpu"):
    """Losses, the farthest that a weight went in one step in multiples of the rate, the model and its optimizer."""
    cfg = make_cfg(peft=lora)
    cfg.optimizer = AdamW(lr=1e-2, weight_decay=0.1, state_bits=bits)
    cfg.train = dataclasses.replace(cfg.train, train_iters=steps)
    model = make_model(ARCHITECTURES[family] | WIDE)
    if lora is not None:
        apply_lora(model, lora, 0)
    model.to(device)
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    rows = RowList(make_row([5 + i % 7, 20, 3], seed=i % 16, vocab=200) for i in range(4 * steps))
    before = [p.detach().clone() for p in model.parameters()]
    losses, moves = [], []

    def after_step(result):
        losses.append(result.loss)
        for old, parameter in zip(before, model.parameters(), strict=True):
            moves.append(float((parameter.detach() - old).abs().max()) / result.lr)
            old.copy_(parameter.detach())

    train_loop(
        model, optimizer, rows, TrainState(), recipe_of(cfg), steps, after_step=after_step, should_stop=lambda: False
    )
    return losses, max(moves), model, optimizer


def coded(optimizer, parameter):
    return {kind: m for kind, m in optimizer.state_of(parameter).items() if type(m).__name__ == "OptimState8bit"}


@pytest.mark.parametrize(
    ("family", "lora"), [("qwen3", None), ("nano", None), ("qwen3", LoraConfig(dim=64))], ids=["dense", "hybrid", "lora"]
)  # fmt: skip
def test_training_goes_as_with_fp32(make_cfg, torchao, family, lora):
    plain, *_ = train(make_cfg, 32, family, lora)
    losses, farthest, model, optimizer = train(make_cfg, 8, family, lora)
    assert plain[-1] < 0.95 * plain[0]
    assert losses == pytest.approx(plain, rel=0.03)
    assert losses != plain
    assert farthest < 5  # of an embedding in eight bits: hundreds, with time
    assert any(coded(optimizer, p) for p in model.parameters() if p.requires_grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_the_device_goes_as_with_fp32(make_cfg, torchao):
    """Compiled there."""
    plain, *_ = train(make_cfg, 32, device="cuda")
    losses, farthest, *_ = train(make_cfg, 8, device="cuda")
    assert losses == pytest.approx(plain, rel=0.03)
    assert farthest < 5


def test_moments_of_matrices_take_a_quarter(make_cfg, torchao):
    _, _, model, optimizer = train(make_cfg, 8, "nano", steps=1)
    in_eight_bits = set()
    for name, parameter in model.named_parameters():
        assert optimizer.state_of(parameter).keys() == {"step", "exp_avg", "exp_avg_sq"}
        moments = coded(optimizer, parameter)
        if moments:
            in_eight_bits.add(name)
            assert moments.keys() == {"exp_avg", "exp_avg_sq"}
            taken = sum(moment.codes.nbytes + moment.scale.nbytes for moment in moments.values())
            assert taken == pytest.approx(2 * 4 * parameter.numel() / 4, rel=0.02)
    assert in_eight_bits == {
        name
        for name, p in model.named_parameters()
        if p.ndim == 2 and p.numel() >= 4096 and p.numel() % 256 == 0 and name != model.embedding_name
    }
    assert "lm_head.weight" in in_eight_bits
    assert all(".experts." not in name for name in in_eight_bits)


def test_groups_are_told(make_cfg, torchao):
    cfg = make_cfg()
    cfg.optimizer.state_bits = 8
    model = make_model(ARCHITECTURES["qwen3_moe"])
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    told = optimizer.describe().split("; ")
    assert [text.split(",")[0] for text in told] == [
        "AdamW8bit on matrices", "AdamW on matrices", "AdamW on vectors and embedding"
    ]  # fmt: skip
    assert all("learning rate 0.01, weight decay" in text for text in told)
    assert optimizer.kinds == ["AdamW"]


def test_without_torchao_it_is_refused_by_name(make_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    cfg = make_cfg()
    check_state_bits(cfg.optimizer)
    cfg.optimizer.state_bits = 8
    with pytest.raises(ConfigError, match=r"optimizer\.state_bits=8 needs torchao: pip install 'torchao"):
        check_state_bits(cfg.optimizer)
