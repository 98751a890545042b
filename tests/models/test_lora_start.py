"""Starts of LoRA's matrices are the peft library's, and so is what training makes of them, on a base that stays as it is."""

from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from support.packed import ARCHITECTURES, alone, logits_of, make_model, make_row, oracle_of, relative

from sft_hydra.checkpoint.adapter import write_adapter
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.errors import ConfigError
from sft_hydra.models.build import as_transformers
from sft_hydra.models.lora import apply_lora, is_adapter
from sft_hydra.schema.peft import LoraConfig

ROWS = [make_row([8, 1, 30], seed=4)]
PREFIX, SUFFIX = "base_model.model.", ".default.weight"


def trained_by(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("family", "kind", "options"),
    [
        ("qwen3", "pissa", {}),
        ("llama", "olora", {"use_rslora": True}),
        ("qwen2", "pissa", {"use_dora": True}),
        ("qwen3", "olora", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 3.0}}),
    ],
)
def test_starts_and_gradients_are_the_peft_librarys(family, kind, options, tmp_path):
    targets = ["q_proj", "o_proj", "down_proj"]
    ours = {"rank_stabilized" if key == "use_rslora" else key: value for key, value in options.items()}
    lora = LoraConfig(dim=4, alpha=6.0, target_modules=targets, init_lora_weights=kind, **ours)
    model = make_model(ARCHITECTURES[family])
    batch = make_batch(ROWS, "cpu")
    plain, base = logits_of(model, batch), oracle_of(make_model(ARCHITECTURES[family]))
    made = PeftConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=kind, **options)
    oracle = get_peft_model(oracle_of(make_model(ARCHITECTURES[family])), made)  # which changes its weights
    apply_lora(model, lora, seed=0)
    assert relative(logits_of(model, batch), plain) < 1e-5
    theirs = dict(oracle.named_parameters())
    pairs = {n: (p, theirs[PREFIX + n.removesuffix(".weight") + SUFFIX]) for n, p in trained_by(model).items()}
    for name, (mine, other) in pairs.items():
        assert relative(mine, other) < 1e-5, name
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for mine, other in pairs.values():
            mine += 0.05 * torch.randn(mine.shape, generator=generator)
            other.copy_(mine)
    loss, _ = forward_loss(model, batch)
    loss.backward()
    logits, expected = alone(oracle, ROWS)
    expected.backward()
    assert relative(loss, expected) < 1e-6
    for name, (mine, other) in pairs.items():
        assert relative(mine.grad, other.grad) < 1e-4, name
    assert relative(alone(as_transformers(model), ROWS)[0], logits) < 1e-5
    write_adapter(model.config, {n: p for n, p in model.named_parameters() if is_adapter(n)}, lora, "base", tmp_path)
    assert relative(alone(PeftModel.from_pretrained(base, tmp_path).eval(), ROWS)[0], logits) < 1e-5


def test_the_randomized_start_is_near_the_exact_one_and_depends_on_the_seed_alone():
    def product(kind, seed=0):
        model = make_model(ARCHITECTURES["qwen3"])
        apply_lora(model, LoraConfig(dim=8, target_modules=["o_proj"], init_lora_weights=kind), seed=seed)
        layer = model.get_submodule("model.layers.1.self_attn.o_proj")
        return layer.lora_B.detach() @ layer.lora_A.detach()

    exact, near = product("pissa"), product("pissa_niter_16")
    assert 0.98 < near.norm() / exact.norm() <= 1
    torch.rand(3)
    assert torch.equal(product("pissa_niter_16"), near)
    assert not torch.equal(product("pissa_niter_16", seed=1), near)


def test_with_dropout_outputs_are_the_peft_librarys():
    model = make_model(ARCHITECTURES["qwen3"])
    options: dict[str, Any] = {"target_modules": ["o_proj"], "init_lora_weights": "pissa"}
    oracle = get_peft_model(oracle_of(model), PeftConfig(r=4, lora_alpha=6, lora_dropout=0.4, **options))
    apply_lora(model, LoraConfig(dim=4, alpha=6.0, dropout=0.4, **options), seed=0)
    name = "model.layers.1.self_attn.o_proj"
    x, outputs = torch.randn(50, 32), []
    for module in (model.get_submodule(name), oracle.get_submodule(PREFIX + name)):
        torch.manual_seed(3)
        outputs.append(module.train()(x))
    assert relative(*outputs) < 1e-5


def test_gaussian_is_another_name_of_normal():
    def first(**options):
        model = make_model(ARCHITECTURES["qwen3"])
        apply_lora(model, LoraConfig(dim=4, target_modules=["o_proj"], **options), seed=0)
        return model.get_parameter("model.layers.1.self_attn.o_proj.lora_A")

    assert torch.equal(first(init_lora_weights="gaussian"), first(a_init="normal"))


def test_a_rank_that_a_layer_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"o_proj is \(32, 32\), which has no part of rank 64"):
        apply_lora(
            make_model(ARCHITECTURES["qwen3"]),
            LoraConfig(dim=64, target_modules=["o_proj"], init_lora_weights="pissa"),
            0,
        )
    with pytest.raises(ConfigError, match=r"init_lora_weights=olora: routed experts"):
        apply_lora(
            make_model(ARCHITECTURES["nano"]), LoraConfig(target_modules=["*.experts.*"], init_lora_weights="olora"), 0
        )
