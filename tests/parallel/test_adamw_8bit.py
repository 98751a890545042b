"""Moments in eight bits over several ranks, and from one checkpoint to the next."""

import pytest
import torch
from support.checkpoints import latest_in
from support.ranks import run_ranks
from support.training import Case, make_cfg, placed_model, training_rows
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sft_hydra.checkpoint.state import Saver, load
from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.parallel.dtensor import full_tensor, local_shard
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.optim import AdamW
from sft_hydra.schema.peft import LoraConfig

SAVED_AFTER, STEPS = 2, 4
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
LAYOUTS = {"one": (1, {}), "fsdp": (2, {}), "tensor": (2, {"tp": 2}), "pipeline": (4, {"pp": 2, "tp": 2})}


@pytest.fixture(autouse=True)
def torchao():
    pytest.importorskip("torchao.optim", reason="needs torchao (the extra `speed`)")


def train(case, layout, folder, *, bits, resume, async_save=False):
    """Losses, weights and moments after the last step (codes and scales, or fp32), and how many numbers loading rounded."""
    cfg = make_cfg(case)
    assert isinstance(cfg.optimizer, AdamW)
    cfg.optimizer.state_bits = bits
    cfg.checkpoint.async_save = async_save
    model = placed_model(case, cfg, layout)
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    state = load(latest_in(folder), model, optimizer) if resume else TrainState()
    saver = Saver(folder, recipe_of(cfg), cfg.checkpoint)
    losses = []

    def after_step(result):
        losses.append(result.loss)
        if result.step == SAVED_AFTER:
            saver.save(model, optimizer, state)

    train_loop(
        model,
        optimizer,
        training_rows(),
        state,
        recipe_of(cfg),
        STEPS,
        after_step=after_step,
        should_stop=lambda: False,
    )
    saver.wait()
    weights, moments = {}, {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weights[name] = full_tensor(parameter)
            for kind, moment in optimizer.state_of(parameter).items():
                mine = local_shard(moment)[0]
                coded = is_traceable_wrapper_subclass(mine)
                moments[f"{name}/{kind}"] = (mine.codes, mine.scale) if coded else (mine,)
    return losses, weights, moments, optimizer.rounded


def run(case, shape, folder, **options):
    """The answers of all ranks."""
    world, sizes = LAYOUTS[shape]
    layout = Layout(gpus_per_node=world, **sizes)
    if world == 1:
        return [train(case, layout, folder, **options)]
    return run_ranks(world, train, case, layout, folder, **options)


class Fp32(Case):
    dtype = torch.float32  # as weights are stored outside of tests


def case_of(lora=None):
    return Fp32("llama", lora=lora, steps=STEPS, architecture=WIDE)


@pytest.mark.parametrize(
    ("shape", "lora"),
    [
        ("fsdp", None),
        pytest.param("fsdp", LoraConfig(dim=64), marks=pytest.mark.distributed),
        pytest.param("tensor", None, marks=pytest.mark.distributed),
        pytest.param("pipeline", None, marks=pytest.mark.distributed),
    ],
)
def test_a_run_goes_on_bit_for_bit_under_the_same_layout(tmp_path, shape, lora):
    straight = run(case_of(lora), shape, tmp_path, bits=8, resume=False, async_save=True)
    resumed = run(case_of(lora), shape, tmp_path, bits=8, resume=True)
    for (losses, weights, moments, _), (later, after, further, rounded) in zip(straight, resumed, strict=True):
        assert later == losses[SAVED_AFTER:]
        assert rounded == 0
        assert all(torch.equal(after[name], weight) for name, weight in weights.items())
        assert further.keys() == moments.keys()
        assert any(len(moment) == 2 for moment in moments.values())
        for name, moment in moments.items():
            assert all(torch.equal(a, b) for a, b in zip(further[name], moment, strict=True)), name


def test_ranks_train_as_one(tmp_path):
    (alone, *_), *_ = run(case_of(), "one", tmp_path, bits=8, resume=False)
    for losses, *_ in run(case_of(), "fsdp", tmp_path, bits=8, resume=False):
        assert losses == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("saved", "resumed", "numbers"),
    [
        ("fsdp", "tensor", 2 * 3 * 128 * (128 + 256)),  # those whose inputs are split: two matrices of each layer
        pytest.param("tensor", "pipeline", 0, marks=pytest.mark.distributed),
        pytest.param("pipeline", "one", 2 * 3 * 128 * (128 + 256), marks=pytest.mark.distributed),
        pytest.param("one", "fsdp", 2 * 48 * 128, marks=pytest.mark.distributed),  # half of the head is whole blocks
    ],
)
def test_a_run_goes_on_nearly_so_under_another_layout(tmp_path, saved, resumed, numbers):
    (straight, *_), *_ = run(case_of(), saved, tmp_path, bits=8, resume=False)
    answers = run(case_of(), resumed, tmp_path, bits=8, resume=True)
    assert answers[0][0] == pytest.approx(straight[SAVED_AFTER:], rel=1e-4)
    assert sum(answer[3] for answer in answers) == numbers


@pytest.mark.distributed
@pytest.mark.parametrize(("bits", "later"), [(32, 8), (8, 32)])
def test_a_run_goes_on_with_other_bits_under_another_layout(tmp_path, bits, later):
    (straight, *_), *_ = run(case_of(), "fsdp", tmp_path, bits=bits, resume=False)
    (resumed, *_), *_ = run(case_of(), "one", tmp_path, bits=later, resume=True)
    assert resumed == pytest.approx(straight[SAVED_AFTER:], rel=1e-4)
