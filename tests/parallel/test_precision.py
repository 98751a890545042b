"""bf16 over several ranks: what is computed in bf16, what stays fp32, and how near it comes to one process."""

import pytest
import torch
from support.ranks import run_ranks
from support.training import Case, make_cfg, placed_model, train, training_rows

from sft_hydra.engine.loop import TrainState, optimizer_step
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Precision

BF16 = {"precision": Precision.bf16}
WATCHED = {
    "model.layers.0.mixer.ssm": "A_log",
    "model.layers.1.mixer.gate": "weight",
    "model.layers.1.mixer.experts.up_proj": "weight",
    "model.layers.2.mixer.q_proj": "weight",
    "model.layers.0.mixer.in_proj": "weight",
}


def dtypes(case, layout):
    """Dtype in the forward pass of parameters in WATCHED; dtypes of all stored parameters, gradients and moments."""
    cfg = make_cfg(case)
    model = placed_model(case, cfg, layout)
    seen = {}

    def watch(name, leaf):
        def hook(module, *_):
            seen[name] = getattr(module, leaf).dtype

        return hook

    for name, leaf in WATCHED.items():
        model.get_submodule(name).register_forward_pre_hook(watch(name, leaf))
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    optimizer_step(model, optimizer, training_rows(), TrainState(), recipe_of(cfg), 3)
    stored = {p.dtype for p in model.parameters() if p.requires_grad} | {
        p.grad.dtype for p in model.parameters() if p.requires_grad
    }
    stored |= {value.dtype for p in model.parameters() if p.requires_grad for value in optimizer.state_of(p).values()}
    return seen, stored


@pytest.mark.parametrize("lora", [None, LoraConfig(dim=4)])
@pytest.mark.parametrize("sizes", [{"tp": 2, "ep": 2}, {"cp": 2}])
def test_scan_and_router_stay_fp32_as_do_masters_and_moments(lora, sizes):
    case = Case("nano", lora=lora, train=BF16)
    for seen, stored in run_ranks(2, dtypes, case, Layout(gpus_per_node=2, **sizes)):
        scan, router, *others = (seen[name] for name in WATCHED)
        assert scan == router == torch.float32
        assert set(others) == {torch.bfloat16}
        assert stored == {torch.float32}


@pytest.mark.parametrize("family", ["llama", "super"])
def test_near_one_process(family):
    case = Case(family, train=BF16)
    expected = train(Case(family), Layout())
    for outcome in run_ranks(2, train, case, Layout(gpus_per_node=2, cp=2)):
        for result, other in zip(outcome.results, expected.results, strict=True):
            assert result.loss == pytest.approx(other.loss, rel=3e-2)
            assert result.grad_norm == pytest.approx(other.grad_norm, rel=0.2)


@pytest.mark.parametrize("sizes", [{}, {"pp": 2}])
@pytest.mark.parametrize("family", ["llama", "super"])
def test_one_rank_rounds_as_several_do(family, sizes):
    case = Case(family, train=BF16)
    alone = train(case, Layout()).results
    for outcome in run_ranks(2, train, case, Layout(gpus_per_node=2, **sizes)):
        assert outcome.results[0].loss == pytest.approx(alone[0].loss, rel=1e-6)
        assert outcome.results[0].grad_norm == pytest.approx(alone[0].grad_norm, rel=2e-4)
        assert [r.loss for r in outcome.results] == pytest.approx([r.loss for r in alone], rel=2e-3)
