"""The moving average of the weights is torch's, on one process and over ranks, and a resumed run has the same."""

import pytest
import torch
from support.packed import relative
from support.ranks import run_ranks
from support.training import Case, make_cfg, placed_model, training_rows
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sft_hydra.checkpoint.state import latest, load, load_average, save
from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.parallel.dtensor import full_tensor
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of

DECAY = 0.7
CASE = Case("qwen3", steps=4)


def train(layout, folder, *, resume=False, until=4):
    """(averages, weights) by name after step `until`, which is saved."""
    cfg = make_cfg(CASE)
    model = placed_model(CASE, cfg, layout)
    optimizer = build_optimizer(model, cfg.optimizer)
    optimizer.keep_average(DECAY)
    state = load(latest(folder), model, optimizer) if resume else TrainState()  # type: ignore[arg-type]
    recipe = recipe_of(cfg)
    train_loop(
        model, optimizer, training_rows(), state, recipe, 4,
        after_step=lambda result: None, should_stop=lambda: state.step == until,
    )  # fmt: skip
    save(folder, model, optimizer, state, recipe, cfg.checkpoint)
    names = {parameter: name for name, parameter in model.named_parameters()}
    averages = {names[parameter]: full_tensor(value) for parameter, value in optimizer.average.values.items()}  # type: ignore[union-attr]
    with optimizer.average.applied():  # type: ignore[union-attr]
        applied = {name: full_tensor(p).clone() for name, p in model.named_parameters()}
    assert all(torch.equal(applied[name], value) for name, value in averages.items())
    return averages, {name: full_tensor(p).clone() for name, p in model.named_parameters()}


def of_torch():
    cfg = make_cfg(CASE)
    model = placed_model(CASE, cfg, Layout())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(model)  # its first update copies
    state = TrainState()
    train_loop(
        model, build_optimizer(model, cfg.optimizer), training_rows(), state, recipe_of(cfg), 4,
        after_step=lambda result: average.update_parameters(model), should_stop=lambda: False,
    )  # fmt: skip
    return dict(average.module.named_parameters())


def test_it_is_the_average_of_torch(tmp_path):
    averages, weights = train(Layout(), tmp_path)
    expected = of_torch()
    assert averages.keys() == expected.keys()
    assert all(relative(averages[name], tensor.detach()) < 1e-6 for name, tensor in expected.items())
    assert any(relative(averages[name], weights[name]) > 1e-4 for name in averages)
    model = placed_model(CASE, make_cfg(CASE), Layout())
    load_average(latest(tmp_path), model)  # type: ignore[arg-type]
    assert all(torch.equal(averages[name], p) for name, p in model.named_parameters())


def test_a_resumed_run_has_the_same_average(tmp_path):
    straight, _ = train(Layout(), tmp_path / "straight")
    train(Layout(), tmp_path / "run", until=2)
    resumed, _ = train(Layout(), tmp_path / "run", resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())


@pytest.mark.distributed
def test_ranks_average_their_shards_and_go_on_under_another_layout(tmp_path):
    straight, _ = train(Layout(), tmp_path / "straight")
    run_ranks(4, train, Layout(gpus_per_node=4, tp=2), tmp_path / "run", until=2)
    [(resumed, _), *_] = run_ranks(2, train, Layout(gpus_per_node=2), tmp_path / "run", resume=True)
    assert all(relative(resumed[name], value) < 1e-5 for name, value in straight.items())
