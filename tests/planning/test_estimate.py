"""Estimates against the published sizes of the real models."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from sft_hydra.models.build import build_model
from sft_hydra.paths import conf_dir
from sft_hydra.planning.estimate import count_parameters, flops_per_token


def _config(shared: Path, name: str) -> dict:
    return json.loads((shared / "assets" / "models" / name / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen3-0.6B", 0.596),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6),
        ("NVIDIA-Nemotron-3-Super-120B-A12B-BF16", 120.7),
    ],
)
def test_parameters_of_the_real_models(shared: Path, name: str, billions: float) -> None:
    assert count_parameters(_config(shared, name)).total / 1e9 == pytest.approx(billions, rel=2e-3)


def _option(name: str) -> dict:
    return yaml.safe_load((conf_dir() / f"model/{name}.yaml").read_text())["architecture"]


def test_nano_4b_has_the_published_number_of_parameters() -> None:
    """3,973,556,832 in 263 tensors, by Megatron-Bridge's verification card nemotron-3-nano-4b."""
    arch = _option("nano_4b")
    model = build_model(arch, "meta", torch.float32)
    assert count_parameters(arch).total == sum(tensor.numel() for tensor in model.parameters()) == 3_973_556_832
    assert len(model.state_dict()) == 263


def test_lightning_has_the_published_number_of_parameters() -> None:
    """32,913,266,240 by Megatron-Bridge's verification card nemotron-3.5-lightning: Nano's, and a block of attention and experts
    with its norms (the embedding's, the hidden states', the last) and the projection of both, which is not trained."""
    nano, arch = _option("nano3"), _option("lightning")
    assert nano.items() < arch.items()
    total, width = count_parameters(arch).total, arch["hidden_size"]
    longer = arch | {"hybrid_override_pattern": arch["hybrid_override_pattern"] + arch["mtp_hybrid_override_pattern"]}
    block = count_parameters(longer | {"num_hidden_layers": 54}).total - total
    assert total == count_parameters(nano).total
    assert total + block + 2 * width**2 + 3 * width == 32_913_266_240


@pytest.mark.parametrize(("name", "billions"), [("nano_9b_v2", 8.9), ("nemotron_h_8b", 8.1)])
def test_parameters_of_earlier_hybrids(name: str, billions: float) -> None:
    arch = _option(name)
    assert len(arch["hybrid_override_pattern"]) == arch["num_hidden_layers"]
    assert count_parameters(arch).total / 1e9 == pytest.approx(billions, rel=5e-3)


def test_active_parameters_of_nano(shared: Path) -> None:
    params = count_parameters(_config(shared, "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"))
    assert (params.active - params.embedding // 2) / 1e9 == pytest.approx(3.2, rel=0.02)


def test_flops_of_a_token(shared: Path) -> None:
    """6 x 0.596e9 + 6 x 28 layers x 2048 x 4096, the roofline everybody quotes for Qwen3-0.6B at 4096."""
    assert flops_per_token(_config(shared, "Qwen3-0.6B"), 4096) / 1e9 == pytest.approx(5.0, rel=0.01)
