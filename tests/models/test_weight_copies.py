"""Weights cast once for all micro-batches: losses and gradients keep every bit, and no copy outlives the step."""

import pytest
import torch
from support.packed import ARCHITECTURES, PACKINGS, make_model, make_row

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_backward
from sft_hydra.models.lora import apply_lora
from sft_hydra.models.weight_copies import CastWeight
from sft_hydra.schema.peft import LoraConfig


@pytest.mark.parametrize(("family", "lora"), [("qwen3_moe", False), ("super", False), ("qwen3", True)])
def test_same_bits(family, lora):
    results = []
    for keeps in (False, True):
        model = make_model(ARCHITECTURES[family])
        if lora:
            apply_lora(model, LoraConfig(dim=4), 0)
        model.rounds_to, model.keeps_weight_copies = torch.bfloat16, keeps
        batches = [make_batch([make_row(PACKINGS[name])], "cpu") for name in ("plain", "ones", "one")]
        for _ in range(2):  # steps: the second has other weights
            losses, _ = forward_backward(model, batches, 3)
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p -= 1e-3 * p.grad
        results.append([*losses, *(p.grad for p in model.parameters() if p.grad is not None)])
        assert all(m.copies is None for m in model.modules() if isinstance(m, CastWeight))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_weight_is_cast_once():
    model = make_model(ARCHITECTURES["qwen3"])
    layer = model.blocks[0].mlp.up_proj
    layer.copies = {}
    copies = [layer.cast("weight", torch.bfloat16) for _ in range(2)]
    assert copies[0].data_ptr() == copies[1].data_ptr()
    assert torch.equal(copies[0], layer.weight.bfloat16())
