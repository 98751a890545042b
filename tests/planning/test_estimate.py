"""Estimates against the published sizes of the real models."""

import json
from pathlib import Path

import pytest

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


def test_active_parameters_of_nano(shared: Path) -> None:
    params = count_parameters(_config(shared, "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"))
    assert (params.active - params.embedding // 2) / 1e9 == pytest.approx(3.2, rel=0.02)


def test_flops_of_a_token(shared: Path) -> None:
    """6 x 0.596e9 + 6 x 28 layers x 2048 x 4096, the roofline everybody quotes for Qwen3-0.6B at 4096."""
    assert flops_per_token(_config(shared, "Qwen3-0.6B"), 4096) / 1e9 == pytest.approx(5.0, rel=0.01)
