"""Warnings about likely mistakes in a training plan, shown by the dry run and at the start of training.

Imports no torch, because the dry run does not.
"""

from collections.abc import Iterator
from typing import Any

from sft_hydra.data.dataset import TrainRows
from sft_hydra.engine.schedule import decay_steps, total_steps, warmup_steps
from sft_hydra.planning.architecture import trained_positions
from sft_hydra.planning.estimate import count_parameters
from sft_hydra.planning.recipe import Recipe


def plan_warnings(recipe: Recipe, architecture: dict[str, Any], rows: TrainRows | None) -> Iterator[str]:
    """Warnings for the user. `architecture`: the model's config.json; `rows`: None if the data is not prepared yet."""
    steps = _steps(recipe, rows)
    if steps:
        yield from _schedule(recipe, steps)
    if rows is not None:
        yield from _batch(recipe, rows, steps)
    yield from _length(recipe, architecture, rows)
    if recipe.train.fp8:
        yield from _fp8(recipe, architecture)


def _steps(recipe: Recipe, rows: TrainRows | None) -> int | None:
    train = recipe.train
    if rows is None and train.train_samples is None and (train.train_iters is None or train.train_iters < 0):
        return None
    return total_steps(recipe.train, recipe.seq_length, rows.rows_per_epoch if rows else 0)


def _schedule(recipe: Recipe, steps: int) -> Iterator[str]:
    warmup, decay = warmup_steps(recipe, steps), decay_steps(recipe, steps)
    if warmup >= steps and warmup > 1:
        yield (
            f"warm-up takes {warmup:,} steps and training has {steps:,}: the learning rate never decays, and its peak is reached "
            "in the last step or not at all; use a smaller scheduler.warmup_iters, or scheduler.warmup_ratio=0.03 instead"
        )
    elif decay is not None and warmup + decay > steps:
        yield (
            f"warm-up ({warmup:,} steps) and decay ({decay:,}) are more than the {steps:,} steps of training: the decay "
            f"is done in the {steps - warmup:,} steps after warm-up"
        )


def _batch(recipe: Recipe, rows: TrainRows, steps: int | None) -> Iterator[str]:
    batch, there = recipe.rows_per_step, rows.rows_per_epoch
    if steps and batch > there:
        yield (
            f"one step takes {batch:,} rows and an epoch has {there:,}: every row is in each step {batch / there:.3g} times; "
            f"use train.global_batch_size={there}, or a smaller seq_length, which makes more rows of the same data"
        )


def _fp8(recipe: Recipe, architecture: dict[str, Any]) -> Iterator[str]:
    if not recipe.train.compile:
        yield (
            "train.fp8=true without train.compile=true: the scales and casts of fp8 are then passes over memory of their own, "
            "which can take longer than fp8 products save; set train.compile=true"
        )
    counts = count_parameters(architecture)
    experts = counts.active - (counts.total - counts.expert)
    blocks = counts.active - counts.embedding
    if 2 * experts > blocks:
        yield (
            f"train.fp8=true: {100 * experts / blocks:.0f} % of the parameters that a token uses in the blocks of this model are "
            "in routed experts, whose products stay in bf16; fp8 can save little, remove train.fp8"
        )


def _length(recipe: Recipe, architecture: dict[str, Any], rows: TrainRows | None) -> Iterator[str]:
    positions = trained_positions(architecture)
    if positions is None or recipe.seq_length <= positions:
        return
    if rows is None:
        yield (
            f"seq_length={recipe.seq_length} is more than the {positions:,} positions of this model (max_position_embeddings): "
            "a conversation that is longer has positions that the model has never seen"
        )
        return
    sources = rows.packed.metadata["sources"]
    longest = max((int(source["lengths"].get("p100", 0)) for source in sources), default=0)
    if longest > positions:
        yield (
            f"the longest conversation has {longest:,} tokens, the model {positions:,} positions (max_position_embeddings); "
            f"use data.max_doc_tokens={positions}, or seq_length={positions}"
        )
