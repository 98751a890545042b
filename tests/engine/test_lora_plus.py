"""LoRA+: a step is the one of the peft library's optimizer."""

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from peft.optimizers import create_loraplus_optimizer
from support.packed import ARCHITECTURES, make_model, oracle_of, relative

from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.models.lora import apply_lora
from sft_hydra.schema.optim import AdamW
from sft_hydra.schema.peft import LoraConfig


@pytest.mark.parametrize(("use_dora", "decay"), [(False, 0.1), (True, 0.0)])  # peft decays magnitudes, too
def test_two_steps_are_those_of_the_peft_library(use_dora, decay):
    model = make_model(ARCHITECTURES["qwen3"])
    targets = ["q_proj", "down_proj"]
    oracle = get_peft_model(oracle_of(model), PeftConfig(r=4, lora_alpha=6, target_modules=targets, use_dora=use_dora))
    apply_lora(model, LoraConfig(dim=4, alpha=6.0, target_modules=targets, use_dora=use_dora), seed=0)
    optimizer = build_optimizer(model, AdamW(lr=1e-3, betas=[0.9, 0.95], weight_decay=decay, lora_plus_ratio=16.0))
    options = {"betas": (0.9, 0.95), "eps": 1e-8, "loraplus_weight_decay": decay}
    theirs = create_loraplus_optimizer(oracle, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, **options)
    others = dict(oracle.named_parameters())
    pairs = {
        name: (p, others[f"base_model.model.{name.removesuffix('.weight')}.default.weight"])
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for mine, other in pairs.values():
            other.copy_(mine)
    for _ in range(2):
        for mine, other in pairs.values():
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        optimizer.step()
        theirs.step()
    for name, (mine, other) in pairs.items():
        assert relative(mine, other) < 1e-6, name
    assert {group["peak_lr"] for group in optimizer.param_groups()} == {1e-3, 16e-3}
