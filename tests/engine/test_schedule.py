"""Rates and lengths as functions of the config."""

import pytest

from sft_hydra.engine.schedule import lr_factor, total_steps
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.planning.topology import rows_per_step
from sft_hydra.schema.optim import Scheduler


def factors(cfg, total, **fields):
    cfg.scheduler = Scheduler(**fields)
    return [lr_factor(step, total, recipe_of(cfg)) for step in range(total)]


def test_warm_up_is_linear_and_reaches_the_peak(make_cfg):
    assert factors(make_cfg(), 10, kind="constant", warmup_iters=4) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert factors(make_cfg(), 10, kind="constant", warmup_samples=16) == factors(
        make_cfg(), 10, kind="constant", warmup_ratio=0.4
    )


def test_cosine_falls_from_the_peak_to_the_minimum(make_cfg):
    values = factors(make_cfg(), 100, kind="cosine", warmup_iters=10, min_lr_frac=0.1)
    assert values[10] == 1
    assert values == sorted(values[:10]) + sorted(values[10:], reverse=True)
    assert values[55] == pytest.approx(0.55)
    assert 0.1 < values[-1] < 0.101


@pytest.mark.parametrize("kind", ["warmdown", "wsd"])
def test_decay_covers_the_last_part_only(make_cfg, kind):
    values = factors(make_cfg(), 100, kind=kind, decay_ratio=0.4)
    assert values[:61] == [1] * 61
    assert values[60:] == sorted(values[60:], reverse=True)
    assert values[-1] == pytest.approx(1 / 40 if kind == "warmdown" else 1 - (39 / 40) ** 0.5)


def test_the_absolute_minimum_is_of_the_peak_rate(make_cfg):
    cfg = make_cfg()
    cfg.optimizer.init_lr_frac = 0.5
    assert factors(cfg, 1000, min_lr=1e-3)[-1] == pytest.approx(0.2, rel=1e-3)


def test_a_single_step_is_taken_at_the_peak(make_cfg):
    for kind in ("cosine", "warmdown", "wsd", "constant"):
        assert factors(make_cfg(), 1, kind=kind) == [1]


def test_lengths(make_cfg):
    cfg = make_cfg()
    assert total_steps(cfg.train, cfg.seq_length, 100) == 8
    cfg.train.train_iters = -1
    assert total_steps(cfg.train, cfg.seq_length, 101) == 26
    cfg.train.train_iters, cfg.train.epochs = None, 2.5
    assert total_steps(cfg.train, cfg.seq_length, 100) == 63
    cfg.train.epochs, cfg.train.train_samples = None, 12
    assert total_steps(cfg.train, cfg.seq_length, 100) == 3


def test_rows_per_step(make_cfg):
    cfg = make_cfg(seq_length=256)
    assert rows_per_step(cfg.train, cfg.seq_length) == 4
    cfg.train.global_batch_size, cfg.train.global_batch_tokens = None, 1024
    assert rows_per_step(cfg.train, cfg.seq_length) == 4
    cfg.train.global_batch_tokens = None
    assert rows_per_step(cfg.train, cfg.seq_length) == 8
