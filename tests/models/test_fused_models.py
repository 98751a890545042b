"""Models compute the same with Triton's kernels (in its interpreter) as with plain torch: losses and all gradients, on packed
rows whose conversations are one token long, many and tiny, or end at a chunk's edge."""

import os

import pytest
import torch
from support.packed import ARCHITECTURES, PACKINGS, make_model, make_row, relative

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.kernels import fused_choice
from sft_hydra.models.lora import apply_lora
from sft_hydra.parallel.parallelize import Options, parallelize
from sft_hydra.schema.peft import LoraConfig

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="needs Triton's interpreter")

SHORT = [1, 4, 1, 1, 6]


def step(family, lengths, *, lora=False, recompute="none"):
    """Loss, losses of tokens, and gradients by name."""
    model = make_model(ARCHITECTURES[family])
    if lora:
        apply_lora(model, LoraConfig(dim=4, match_all_linear=True), 0)
        init_weights_of_adapters(model)
    parallelize([model], model.blocks, model.mesh, Options(recompute=recompute))
    loss, per_token = forward_loss(model, make_batch([make_row(lengths)], "cpu"))
    loss.backward()
    return loss, per_token, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def init_weights_of_adapters(model):
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.data.normal_(0.0, 0.2, generator=generator)
            assert "lora_" in name


def same(monkeypatch, *args, **kwargs):
    pytest.importorskip("triton")
    plain = step(*args, **kwargs)
    monkeypatch.setattr(fused_choice, "DEVICE", "cpu")
    fused = step(*args, **kwargs)
    assert relative(fused[0], plain[0]) < 1e-5
    assert relative(fused[1], plain[1]) < 1e-4
    for name, grad in plain[2].items():
        assert relative(fused[2][name], grad) < 1e-4, name
    assert not all(torch.equal(fused[2][name], grad) for name, grad in plain[2].items())  # kernels did run


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "nano"])
def test_same_loss_and_gradients(monkeypatch, family):
    same(monkeypatch, family, SHORT)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_same_under_recompute(monkeypatch, recompute):
    same(monkeypatch, "qwen3", SHORT, recompute=recompute)


def test_same_with_adapters(monkeypatch):
    same(monkeypatch, "super", SHORT, lora=True, recompute="selective")


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["ones", "chunk_edges"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "nano"])
def test_same_on_longer_rows(monkeypatch, family, packing):
    same(monkeypatch, family, PACKINGS[packing])
