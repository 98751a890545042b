"""The kernels of a model by operation, with reasons."""

import pytest
import torch
from support.packed import ARCHITECTURES, make_model

from sft_hydra.kernels import library_choice
from sft_hydra.kernels.library_choice import CAUSAL_CONV1D, FLASH_ATTN, MAMBA_SSM, VARLEN_ATTN
from sft_hydra.runners.kernel_report import kernels_of


@pytest.fixture
def refused(monkeypatch):
    return lambda reasons: monkeypatch.setattr(library_choice, "_refused", reasons)


def test_every_operation_of_the_model_with_why_not_faster(refused):
    refused({FLASH_ATTN: "ImportError: undefined symbol", MAMBA_SSM: "not installed"})
    model = make_model(ARCHITECTURES["nano"])
    model.rounds_to = torch.bfloat16
    assert kernels_of(model) == {
        "attention": "torch varlen_attn (flash-attn: ImportError: undefined symbol)",
        "convolution": "causal-conv1d",
        "scan": "plain torch (mamba-ssm: not installed)",
        "experts": "a product for each expert",
    }


def test_on_a_cpu(refused):
    refused(dict.fromkeys((FLASH_ATTN, VARLEN_ATTN, CAUSAL_CONV1D, MAMBA_SSM), "the device is cpu"))
    found = kernels_of(make_model(ARCHITECTURES["qwen3"]))
    assert found == {
        "attention": "torch scaled_dot_product_attention (flash-attn, torch varlen_attn: the device is cpu)"
    }


def test_in_fp32(refused):
    refused({})
    assert "this run in fp32" in kernels_of(make_model(ARCHITECTURES["qwen3"]))["attention"]
