"""Even use of experts: the balancing loss is that of transformers over the whole global batch, the bias follows its counts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.packed import oracle_gradients, oracle_of, relative
from support.training import Case, make_cfg, placed_model, train, training_rows
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.microbatches import forward_only, load_batches
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.models.moe import SigmoidRouter
from sft_hydra.models.state_dict_map import to_disk
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.records import IGNORE_INDEX
from sft_hydra.schema.train import Recompute

FACTOR, RATE = 0.5, 0.02
AUX = Case("qwen3_moe", steps=1, train={"router_aux_loss": FACTOR})
BIAS = Case("nano", steps=1, train={"router_bias_update_rate": RATE})


def test_the_balancing_loss_and_its_gradients_are_those_of_transformers(tmp_path):
    model = placed_model(AUX, make_cfg(AUX), Layout())
    oracle = oracle_of(model.float())
    batch = make_batch(training_rows()[:4], "cpu")
    logits, routers = [], []
    for ids in batch.input_ids.split(batch.cu_seqlens.diff().tolist()):
        out = oracle(input_ids=ids[None], output_router_logits=True)
        logits.append(out.logits[0])
        routers.append(out.router_logits)
    layers = tuple(torch.cat(parts) for parts in zip(*routers, strict=True))
    aux = load_balancing_loss_func(layers, oracle.config.num_experts, oracle.config.num_experts_per_tok)
    loss = F.cross_entropy(torch.cat(logits), batch.targets, ignore_index=IGNORE_INDEX)
    (loss + FACTOR * aux).backward()
    expected = oracle_gradients(oracle, tmp_path)
    outcome = train(AUX, Layout())
    assert outcome.results[0].router_aux_loss == pytest.approx(aux.item(), rel=1e-6)
    assert outcome.results[0].loss == pytest.approx(loss.item(), rel=1e-6)
    for name, gradient in to_disk(model.config, outcome.gradients):
        assert relative(gradient.float(), expected[name]) < 1e-5, name
    plain = train(replace(AUX, train={}), Layout())
    name = "model.layers.0.mlp.gate.weight"
    assert relative(plain.gradients[name], outcome.gradients[name]) > 1e-2


@pytest.mark.parametrize(
    "other", [{"micro_batch_size": 2}, {"micro_batch_size": 4}, {"recompute": Recompute.selective}]
)
@pytest.mark.parametrize("case", [AUX, BIAS], ids=["aux", "bias"])
def test_accumulation_and_recompute_change_nothing(one_process, case, other):
    expected = one_process(replace(case, steps=3))
    outcome = train(replace(case, steps=3, train=case.train | other), Layout())
    for result, other_result in zip(outcome.results, expected.results, strict=True):
        assert (result.router_aux_loss or 0.0) == pytest.approx(other_result.router_aux_loss or 0.0, rel=1e-6)
    for name, tensor in expected.parameters.items():
        assert relative(outcome.parameters[name], tensor) < 1e-4, name


def test_a_bias_moves_by_what_its_experts_got():
    model = placed_model(BIAS, make_cfg(BIAS), Layout())
    chosen = {}
    for name, module in model.named_modules():
        if isinstance(module, SigmoidRouter):
            module.register_forward_hook(lambda _, __, out, name=name: chosen.__setitem__(name, out[0]))
    batch = make_batch(training_rows()[:4], "cpu")
    with torch.no_grad():
        model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)
    after = train(BIAS, Layout()).parameters
    for name, experts in chosen.items():
        key = f"{name}.e_score_correction_bias"
        counts = experts.flatten().bincount(minlength=8)
        moved = after[key] - model.state_dict()[key]
        assert relative(moved, RATE * (counts.double().mean() - counts).sign().float()) < 1e-4
    still = train(replace(BIAS, train={}), Layout()).parameters
    assert all(torch.equal(still[key], model.state_dict()[key]) for key in still if key.endswith("correction_bias"))


def test_validation_between_steps_counts_for_nothing():
    def biases(*, validates):
        cfg, rows, state = make_cfg(replace(BIAS, steps=2)), training_rows(), TrainState()
        model = placed_model(BIAS, cfg, Layout())
        others = load_batches(rows, [range(20, 30)], model, recipe_of(cfg).micro_batch_tokens)
        train_loop(
            model,
            build_optimizer(model, cfg.optimizer, cfg.train.precision),
            rows,
            state,
            recipe_of(cfg),
            2,
            after_step=lambda _: forward_only(model, others) if validates else None,
            should_stop=lambda: False,
        )
        return torch.cat(list(model.buffers()))

    assert torch.equal(biases(validates=True), biases(validates=False))
