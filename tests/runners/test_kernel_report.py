"""The kernels of a model by operation, with reasons."""

import pytest
import torch
from support.packed import ARCHITECTURES, make_model

from sft_hydra.kernels import fused_choice, library_choice
from sft_hydra.kernels.library_choice import FLASH_ATTN, MAMBA_SSM
from sft_hydra.runners.kernel_report import kernels_of


@pytest.fixture
def on_device(monkeypatch):
    """Takes the CPU for the device that kernels are for; the argument: why some are not used."""

    def pretend(reasons):
        for choice in (library_choice, fused_choice):
            monkeypatch.setattr(choice, "DEVICE", "cpu")
            monkeypatch.setattr(choice, "_refused", reasons)

    return pretend


def test_every_operation_of_the_model_with_why_not_faster(on_device):
    on_device({FLASH_ATTN: "ImportError: undefined symbol", MAMBA_SSM: "not installed", "combine": "RuntimeError: no"})
    model = make_model(ARCHITECTURES["nano"])
    model.rounds_to = torch.bfloat16
    assert kernels_of(model) == {
        "attention": "torch varlen_attn (flash-attn: ImportError: undefined symbol)",
        "convolution": "causal-conv1d",
        "scan": "plain torch (mamba-ssm: not installed)",
        "experts": "a product for each expert",
        "norms, rotary, activations, loss": "Triton: rms_norm, rotary, activation, cross_entropy, gated_norm "
        "(combine: RuntimeError: no)",
    }


def test_on_a_cpu():
    assert kernels_of(make_model(ARCHITECTURES["qwen3"])) == {
        "attention": "torch scaled_dot_product_attention (flash-attn, torch varlen_attn: the device is cpu)",
        "norms, rotary, activations, loss": "plain torch (Triton: the device is cpu)",
    }


def test_in_fp32(on_device):
    on_device({})
    assert "this run is in fp32" in kernels_of(make_model(ARCHITECTURES["qwen3"]))["attention"]
