"""What an optimizer step computes: equal to a plain loop over conversations, whatever the micro-batches."""

import numpy as np
import pytest
import torch
from support.packed import ARCHITECTURES, alone, make_model, make_row, oracle_of, relative

from sft_hydra.engine.loop import TrainState, optimizer_step, train_loop
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.engine.schedule import lr_factor
from sft_hydra.errors import DataError, NonFiniteLossError
from sft_hydra.planning.recipe import recipe_of


@pytest.fixture
def rows():
    """Rows with very different numbers of trained tokens, one without any."""
    rows = [make_row([5 + i, 20, 3, 1 + 2 * i], seed=i) for i in range(40)]
    rows[2].loss_mask[:] = 0
    rows[3].loss_mask[:-4] = 0
    return rows


def run(cfg, rows, steps, architecture="qwen3"):
    """Results of `steps` steps, and the model after them."""
    model = make_model(ARCHITECTURES[architecture])
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    state = TrainState()
    results = []
    train_loop(
        model, optimizer, rows, state, recipe_of(cfg), steps, after_step=results.append, should_stop=lambda: False
    )
    return results, model


def test_accumulation_changes_nothing(make_cfg, rows):
    whole, model = run(make_cfg(train={"micro_batch_size": 4}), rows, 3)
    for size in (1, 2, 3):
        parts, other = run(make_cfg(train={"micro_batch_size": size}), rows, 3)
        for a, b in zip(whole, parts, strict=True):
            assert a.loss == pytest.approx(b.loss, rel=1e-6)
            assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
            assert (a.tokens, a.trained_tokens) == (b.tokens, b.trained_tokens)
            assert a.source_losses == pytest.approx(b.source_losses, rel=1e-6)
        for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
            assert relative(mine, theirs) < 1e-4


@pytest.mark.parametrize("per_token", [True, False])
def test_ten_steps_equal_a_plain_transformers_loop(make_cfg, rows, per_token):
    cfg = make_cfg(train={"calculate_per_token_loss": per_token})
    results, model = run(cfg, rows, 10)

    oracle = oracle_of(make_model(ARCHITECTURES["qwen3"])).train()
    decayed = [p for n, p in oracle.named_parameters() if p.ndim > 1 and "embed_tokens" not in n]
    plain = [p for n, p in oracle.named_parameters() if p.ndim == 1 or "embed_tokens" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step, result in enumerate(results):
        batch = rows[4 * step : 4 * step + 4]
        trained_tokens = sum(int(row.loss_mask.sum()) for row in batch)
        trained_sequences = sum(part.any() for row in batch for part in np.split(row.loss_mask, row.seq_start_id[1:]))
        loss = alone(oracle, batch)[1] / (trained_tokens if per_token else trained_sequences)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * lr_factor(step, 10, recipe_of(cfg))
        optimizer.step()
        assert result.loss == pytest.approx(loss.item(), rel=1e-4)
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-3)
        assert result.lr == pytest.approx(1e-2 * lr_factor(step, 10, recipe_of(cfg)))
    trained = dict(oracle.named_parameters())
    for name, parameter in model.named_parameters():
        assert relative(parameter, trained[name]) < 1e-3, name


def test_source_losses_are_means_over_the_sources_tokens(make_cfg, rows):
    model = make_model(ARCHITECTURES["qwen3"])
    cfg = make_cfg()
    result = optimizer_step(
        model, build_optimizer(model, cfg.optimizer, cfg.train.precision), rows, TrainState(), recipe_of(cfg), 8
    )
    counts = np.zeros(2)
    for row in rows[:4]:
        lengths = np.diff(row.seq_start_id, append=len(row.input_ids))
        counts += np.bincount(np.repeat(row.source_id, lengths), weights=row.loss_mask, minlength=2)
    assert counts.sum() == result.trained_tokens
    total = sum(result.source_losses[source] * counts[source] for source in (0, 1))
    assert total / counts.sum() == pytest.approx(result.loss, rel=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows(make_cfg, rows):
    model = make_model(ARCHITECTURES["qwen2"])
    token = int(rows[1].input_ids[0])
    for row in rows[:4]:
        row.input_ids[row.input_ids == token] = token - 1
    rows[1].input_ids[0], rows[1].loss_mask[0] = token, 1
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.inf
    before = [parameter.clone() for parameter in model.parameters()]
    cfg = make_cfg()
    state = TrainState()
    with pytest.raises(NonFiniteLossError, match=r"packed sequences 1 of the train split;"):
        optimizer_step(
            model, build_optimizer(model, cfg.optimizer, cfg.train.precision), rows, state, recipe_of(cfg), 8
        )
    assert state == TrainState()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_mask_that_crosses_a_border_is_refused(make_cfg, rows):
    rows[0].loss_mask[rows[0].seq_start_id[1] - 1] = 1
    model = make_model(ARCHITECTURES["qwen3"])
    cfg = make_cfg()
    with pytest.raises(DataError, match="after the end of a conversation"):
        optimizer_step(
            model, build_optimizer(model, cfg.optimizer, cfg.train.precision), rows, TrainState(), recipe_of(cfg), 8
        )


def test_should_stop_ends_after_the_step_it_was_asked_in(make_cfg, rows):
    cfg = make_cfg()
    model = make_model(ARCHITECTURES["qwen3"])
    state = TrainState()
    done = []
    train_loop(
        model,
        build_optimizer(model, cfg.optimizer, cfg.train.precision),
        rows,
        state,
        recipe_of(cfg),
        8,
        after_step=done.append,
        should_stop=lambda: state.step == 2,
    )
    assert [result.step for result in done] == [1, 2]
    assert state.rows_consumed == 8


def test_muon_learns_and_adamw_keeps_embeddings_and_vectors(make_cfg, rows):
    cfg = make_cfg("muon")
    model = make_model(ARCHITECTURES["qwen3_biased"])
    muon, adamw = build_optimizer(model, cfg.optimizer, cfg.train.precision).parts
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_muon = {names[p] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert by_muon == {n for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n}
    assert by_muon | by_adamw == set(names.values())
    same = [rows[0]] * 40
    results, _ = run(cfg, same, 10)
    assert results[-1].loss < 0.7 * results[0].loss
