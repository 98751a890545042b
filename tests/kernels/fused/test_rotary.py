"""Norm and rotation of packed rows, whose positions restart, are transformers' on each conversation."""

import pytest
import torch
import torch.nn.functional as F
from support.fused import agrees
from support.packed import ARCHITECTURES, PACKINGS, make_row
from transformers.models.qwen3.modeling_qwen3 import rotate_half

from sft_hydra.engine.batch import make_batch
from sft_hydra.kernels.rotary import norm_rotate
from sft_hydra.models.build import read_config
from sft_hydra.models.rotary import rotary_tables


def tables(family, lengths):
    return rotary_tables(read_config(ARCHITECTURES[family]), make_batch([make_row(lengths)], "cpu").position_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [PACKINGS["ones"], PACKINGS["chunk_edges"], [1]])
@pytest.mark.parametrize("family", ["qwen3", "yarn"])
def test_norm_and_rotation(fused, family, lengths, dtype):
    torch.manual_seed(0)
    cos, sin = tables(family, lengths)

    def reference(x, weight):
        normed = F.rms_norm(x, weight.shape, weight, 1e-6)
        return normed * cos + rotate_half(normed) * sin

    rotary = cos.to(fused), sin.to(fused)
    tensors = [torch.randn(sum(lengths), 3, 8), torch.randn(8)]
    agrees(lambda x, weight: norm_rotate(x, weight, 1e-6, rotary), reference, tensors, fused, dtype)


@pytest.mark.parametrize("size", [8, 24])
def test_rotation_without_norm_of_a_slice_of_heads(fused, size):
    torch.manual_seed(0)
    angles = torch.rand(9, 1, size // 2).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    rotary = cos.to(fused), sin.to(fused)
    agrees(
        lambda x: norm_rotate(x[:, 1:], None, 0.0, rotary),
        lambda x: x[:, 1:] * cos + rotate_half(x[:, 1:]) * sin,
        [torch.randn(9, 5, size)],
        fused,
        torch.float32,
    )
