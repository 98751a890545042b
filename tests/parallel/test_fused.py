"""Fused operations under FSDP and tensor parallelism: losses and gradients are those of one process with plain torch."""

import os

import pytest
import torch
from support.packed import RowList, make_row, relative
from support.ranks import run_ranks
from support.training import Case, make_cfg, placed_model

from sft_hydra.engine.microbatches import assign_rows, forward_backward, load_batches
from sft_hydra.kernels import fused_choice
from sft_hydra.parallel.collectives import sum_over_ranks
from sft_hydra.parallel.dtensor import full_tensor
from sft_hydra.planning.layout import Layout
from sft_hydra.schema.peft import LoraConfig

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="needs Triton's interpreter")
ROWS = RowList(make_row(lengths, seed=i) for i, lengths in enumerate([[1, 5, 6], [1, 1, 10]]))


def one_pass(case, layout, fused):
    """Summed loss of two rows, and all gradients."""
    fused_choice.DEVICE = "cpu" if fused else "cuda"
    cfg = make_cfg(case)
    model = placed_model(case, cfg, layout)
    micro_batches = assign_rows(ROWS, range(2), 1, model.mesh)
    batches = load_batches(ROWS, micro_batches, model, 12)
    losses, _ = forward_backward(model, batches, 1)
    loss = sum_over_ranks([float(torch.stack(losses).sum())], model.mesh)[0]
    return loss, {n: full_tensor(p.grad) for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        (Case("qwen3", weights=torch.float32), {}),
        (Case("qwen3", weights=torch.float32, lora=LoraConfig(dim=4, match_all_linear=True)), {"tp": 2}),
        pytest.param(Case("nano", weights=torch.float32), {"tp": 2, "ep": 2}, marks=pytest.mark.slow),
    ],
    ids=["fsdp", "tp and lora", "tp and ep"],
)
def test_same_loss_and_gradients(case, sizes):
    pytest.importorskip("triton")
    (expected, gradients), *_ = run_ranks(1, one_pass, case, Layout(), False)
    for loss, mine in run_ranks(2, one_pass, case, Layout(gpus_per_node=2, **sizes), True):
        assert loss == pytest.approx(expected, rel=1e-5)
        assert mine.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert relative(mine[name], gradient) < 1e-4, name
