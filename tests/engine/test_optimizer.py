"""Which parameters are updated by what, and that every matrix, an expert's too, is orthogonalised by itself."""

import math
from typing import Any

import pytest
import torch
from support.packed import ARCHITECTURES, make_model
from torch import nn

from sft_hydra.engine.muon import NEWTON_SCHULZ, Muon, orthogonal
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.engine.precision import cpu_multiplies_bf16, orthogonal_dtype
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.train import Precision

SHAPES = [(5, 24, 16), (3, 16, 40)]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nesterov", [True, False])
def test_in_bf16_every_matrix_is_updated_as_by_torch(shape: tuple[int, int, int], nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    stack = nn.Parameter(torch.randn(shape, generator=generator))
    ours, alone = ([nn.Parameter(matrix.clone()) for matrix in stack.data] for _ in range(2))
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "ns_steps": 5}
    muon = Muon([{"params": [stack]}, {"params": ours}], **options, dtype=torch.bfloat16)
    reference = torch.optim.Muon(alone, **options)
    for step in range(3):
        before = stack.detach().clone()
        gradient = torch.randn(shape, generator=generator)
        gradient[0] = 0 if step == 0 else gradient[0]  # an expert that no token has met
        stack.grad = gradient.clone()
        for matrix, same, own in zip(ours, alone, gradient, strict=True):
            matrix.grad, same.grad = own.clone(), own.clone()
        muon.step()
        reference.step()
        for i, matrix in enumerate(alone):
            assert torch.equal(ours[i], matrix)
            # of a stack, the order of sums in bf16 is another
            assert (stack[i] - matrix).norm() <= 0.02 * (matrix - before[i]).norm()
        with torch.no_grad():
            stack.copy_(torch.stack([matrix.detach() for matrix in alone]))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_fp32_it_is_the_polynomial_of_the_singular_values(shape: tuple[int, int, int]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(stack.double(), full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    expected = u * values[:, None] @ v
    for found, wanted in [(orthogonal(stack, 5, torch.float32), expected)] + [
        (orthogonal(matrix, 5, torch.float32), whole) for matrix, whole in zip(stack, expected, strict=True)
    ]:
        assert found.dtype is torch.float32
        assert (found - wanted).norm() < 1e-5 * math.sqrt(wanted.numel())


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch, whenever these flags are put back
def test_products_in_bf16_are_left_to_devices_that_are_fast_at_them() -> None:
    usual, fp32, bf16 = (SftConfig() for _ in range(3))
    fp32.train.precision, bf16.train.precision = Precision.fp32, Precision.bf16
    assert orthogonal_dtype(usual.train.precision, CUDA, CUDA) is torch.bfloat16
    assert orthogonal_dtype(fp32.train.precision, CUDA, CUDA) is torch.float32
    assert orthogonal_dtype(usual.train.precision, CPU, CPU) is torch.float32
    assert orthogonal_dtype(fp32.train.precision, CPU, CPU) is torch.float32
    assert (orthogonal_dtype(bf16.train.precision, CPU, CPU) is torch.bfloat16) == cpu_multiplies_bf16()
    assert (
        orthogonal_dtype(usual.train.precision, CUDA, CPU) is torch.bfloat16
    ) == cpu_multiplies_bf16()  # train.cpu_offload
    with torch.backends.mkldnn.flags(enabled=False):  # the library that multiplies bf16 on a CPU
        assert orthogonal_dtype(bf16.train.precision, CPU, CPU) is torch.float32


@pytest.mark.parametrize("family", ["qwen3_moe", "nano"])
def test_muon_takes_the_experts_and_leaves_the_convolution(make_cfg, family: str) -> None:
    model = make_model(ARCHITECTURES[family])
    optimizer = build_optimizer(model, make_cfg("muon").optimizer)
    assert optimizer.kinds == ["Muon", "AdamW"]
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, adamw = optimizer.parts
    matrices, stacks = ({names[p] for p in group["params"]} for group in muon.param_groups)
    rest = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert stacks == {name for name in names.values() if ".experts." in name}
    assert all(".conv1d." not in name for name in matrices | stacks)
    assert matrices | stacks | rest == set(names.values())


def test_groups_are_told(make_cfg) -> None:
    model = make_model(ARCHITECTURES["qwen3_moe"])
    told = build_optimizer(model, make_cfg("muon").optimizer).describe().split("; ")
    assert [text.split(",")[0] for text in told] == [
        "Muon on hidden matrices",
        "Muon on experts' matrices",
        "AdamW on vectors",
        "AdamW on embedding",
        "AdamW on matrices",
    ]
    assert told[1].endswith("learning rate 0.05, weight decay 0")
    counted = sum(int(text.split(", ")[1].split(" ")[0].replace(",", "")) for text in told)
    assert counted == sum(p.numel() for p in model.parameters())
