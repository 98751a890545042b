"""Which parameters are updated by what, and that every expert is updated as a matrix by itself."""

import pytest
import torch
from support.packed import ARCHITECTURES, make_model
from torch import nn

from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.engine.stacked_muon import StackedMuon


@pytest.mark.parametrize("shape", [(5, 24, 16), (3, 16, 40)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_each_matrix_of_a_stack_is_updated_as_by_itself(shape: tuple[int, int, int], nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    stack = nn.Parameter(torch.randn(shape, generator=generator))
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.data]
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "ns_steps": 5}
    ours, theirs = StackedMuon([stack], **options), torch.optim.Muon(alone, **options)
    for step in range(3):
        before = stack.detach().clone()
        gradient = torch.randn(shape, generator=generator)
        gradient[0] = 0 if step == 0 else gradient[0]  # an expert that no token has met
        stack.grad = gradient.clone()
        for matrix, own in zip(alone, gradient, strict=True):
            matrix.grad = own.clone()
        ours.step()
        theirs.step()
        for i, matrix in enumerate(alone):
            # in bf16, whose rounding depends on the order of sums
            assert (stack[i] - matrix).norm() <= 0.02 * (matrix - before[i]).norm()
        with torch.no_grad():
            stack.copy_(torch.stack([matrix.detach() for matrix in alone]))


@pytest.mark.parametrize("family", ["qwen3_moe", "nano"])
def test_muon_takes_the_experts_and_leaves_the_convolution(make_cfg, family: str) -> None:
    model = make_model(ARCHITECTURES[family])
    optimizer = build_optimizer(model, make_cfg("muon"))
    assert optimizer.kinds == ["Muon", "StackedMuon", "AdamW"]
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices, stacks, rest = (
        {names[p] for group in part.param_groups for p in group["params"]} for part in optimizer.parts
    )
    assert stacks == {name for name in names.values() if ".experts." in name}
    assert all(".conv1d." not in name for name in matrices | stacks)
    assert matrices | stacks | rest == set(names.values())


def test_groups_are_told(make_cfg) -> None:
    model = make_model(ARCHITECTURES["qwen3_moe"])
    told = build_optimizer(model, make_cfg("muon")).describe().split("; ")
    assert [text.split(",")[0] for text in told] == [
        "Muon on hidden matrices",
        "StackedMuon on experts' matrices",
        "AdamW on vectors",
        "AdamW on embedding",
        "AdamW on matrices",
    ]
    assert told[1].endswith("learning rate 0.05, weight decay 0")
    counted = sum(int(text.split(", ")[1].split(" ")[0].replace(",", "")) for text in told)
    assert counted == sum(p.numel() for p in model.parameters())
