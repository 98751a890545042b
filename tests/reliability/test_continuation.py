"""Exact continuation: whatever the sequence of stops, lost steps and changes of the number of ranks, the losses are those
of the straight run on one rank."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ranks import run_ranks
from support.training import Case, make_cfg, placed_model, training_rows

from sft_hydra.checkpoint.state import Saver, latest, load
from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of

STEPS = 8
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 16, "vocab_size": 97}
# one attempt: ranks, steps that it makes before it ends, whether it saves before it ends (else steps are lost)
ATTEMPT = st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.booleans())
SCHEDULE = st.lists(ATTEMPT, min_size=1, max_size=4)


def attempt(folder: Path, world: int, steps: int, saves: bool) -> list[tuple[int, float]]:
    """Go on from the latest checkpoint for at most `steps` steps; (step, loss) of each."""
    case = Case("qwen3", steps=STEPS, architecture=SMALL)
    cfg = make_cfg(case)
    model = placed_model(case, cfg, Layout(gpus_per_node=world))
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    found = latest(folder)
    state = load(found, model, optimizer) if found else TrainState()
    until = min(STEPS, state.step + steps)
    saver = Saver(folder, recipe_of(cfg), cfg.checkpoint)
    losses: list[tuple[int, float]] = []

    def after_step(result: Any) -> None:
        losses.append((result.step, result.loss))
        if saves and result.step == until:
            saver.save(model, optimizer, state)

    if state.step < STEPS:
        train_loop(
            model,
            optimizer,
            training_rows(),
            state,
            recipe_of(cfg),
            STEPS,
            after_step=after_step,
            should_stop=lambda: state.step == until,
        )
    saver.wait()
    return losses


def on_ranks(folder: Path, world: int, steps: int, saves: bool) -> list[tuple[int, float]]:
    if world == 1:
        return attempt(folder, world, steps, saves)
    answers = run_ranks(world, attempt, folder, world, steps, saves)
    assert all(answer == answers[0] for answer in answers)
    found: list[tuple[int, float]] = answers[0]
    return found


@cache
def straight() -> dict[int, float]:
    with TemporaryDirectory() as folder:
        return dict(attempt(Path(folder), 1, STEPS, False))


def check(schedule: list[tuple[int, int, bool]]) -> None:
    with TemporaryDirectory() as name:
        folder, done, saved = Path(name), set(), 0
        alone = all(world == 1 for world, _, _ in schedule)
        for world, steps, saves in [*schedule, (1, STEPS, True)]:
            losses = on_ranks(folder, world, steps, saves)
            assert [step for step, _ in losses] == list(range(saved + 1, min(STEPS, saved + steps) + 1))
            for step, loss in losses:
                assert loss == pytest.approx(straight()[step], rel=0 if alone else 1e-6)
                done.add(step)
            if saves and losses:
                saved = losses[-1][0]
        assert done == set(range(1, STEPS + 1))


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.just(1), st.integers(1, 3), st.booleans()), min_size=1, max_size=5))
def test_any_sequence_of_interruptions_continues_exactly(schedule: list[tuple[int, int, bool]]) -> None:
    check(schedule)


def test_up_and_down_again() -> None:
    check([(2, 3, True), (1, 1, False), (4, 2, True)])


@pytest.mark.reliability
@pytest.mark.timeout(3000)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEDULE)
def test_many_sequences_of_interruptions_continue_exactly(schedule: list[tuple[int, int, bool]]) -> None:
    check(schedule)
