"""What a plan says of LoRA is what training adapts, to the parameter, whatever is targeted."""

import pytest
import torch
from support.packed import ARCHITECTURES

from sft_hydra.errors import ConfigError
from sft_hydra.models.build import build_model
from sft_hydra.models.lora import add_adapters
from sft_hydra.planning.estimate import trainable_parameters
from sft_hydra.schema.peft import LoraConfig

CHOICES = {
    "usual": LoraConfig(),
    "all": LoraConfig(match_all_linear=True, dim=4),
    "attention": LoraConfig(target_modules=["linear_qkv", "linear_proj"]),
    "all but": LoraConfig(exclude_modules=["q_proj"], dim=3),
    "dora": LoraConfig(target_modules=["linear_qkv", "linear_proj"], use_dora=True),
    "tables": LoraConfig(modules_to_save=["embed_tokens", "lm_head"]),
    "head": LoraConfig(modules_to_save=["lm_head"]),
    "rows": LoraConfig(trainable_new_tokens=True),
    "patterns": LoraConfig(target_modules=["q_proj", "v_proj"], dim=8, rank_pattern={"v_proj": 5}),
    "feed-forward": LoraConfig(target_modules=["linear_fc1", "linear_fc2"], dim=2),
}


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen3_moe", "nano", "super"])
@pytest.mark.parametrize("choice", CHOICES)
def test_adapters_are_counted_as_they_are_made(family, choice):
    model = build_model(ARCHITECTURES[family], "meta", torch.float32)
    lora = CHOICES[choice]
    made = sum(row.trainable for row in add_adapters(model, lora, (1, 2, 3)))
    assert (
        trainable_parameters(ARCHITECTURES[family], lora, new_tokens=3)
        == made
        == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    )


def test_a_pattern_without_a_layer_is_an_error_of_the_plan_too():
    with pytest.raises(ConfigError, match="'query' matches no linear layer"):
        trainable_parameters(ARCHITECTURES["qwen3"], LoraConfig(target_modules=["query"]))


def test_layers_of_another_family_are_counted_about_so():
    unknown = ARCHITECTURES["qwen3"] | {"model_type": "falcon"}
    lora = LoraConfig(target_modules=["query_key_value_fused"])
    assert trainable_parameters(unknown, lora) == trainable_parameters(unknown, LoraConfig())
