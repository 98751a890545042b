"""The training loop and the optimizer step.

The loss is summed over all supervised tokens of the global batch and divided once, so gradient accumulation, packing and
the parallel layout do not change it. The order of operations of a training step is defined in `optimizer_step`.

Owner of: the loss is divided once, by a count over the whole global batch.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from sft_hydra.engine.batch import Batch
from sft_hydra.engine.gradients import clip_gradients
from sft_hydra.engine.microbatches import TrainingRows, assign_rows, forward_backward, load_batches
from sft_hydra.engine.moe_balancing import attach_router_counters, set_balancing_loss, update_router_bias
from sft_hydra.engine.optimizer import OptimizerSet
from sft_hydra.engine.prefetch import Prefetcher
from sft_hydra.engine.schedule import lr_factor
from sft_hydra.errors import NonFiniteLossError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.parallel.collectives import all_gather_objects, max_over_ranks, sum_over_ranks
from sft_hydra.parallel.mesh import Mesh
from sft_hydra.planning.recipe import Recipe
from sft_hydra.records import IGNORE_INDEX


@dataclass(slots=True)
class TrainState:
    """Training progress: what a resume needs besides weights and optimizer state."""

    step: int = 0  # optimizer steps done
    rows_consumed: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    best_value: float | None = None  # of train.early_stopping.metric
    measurements_without_gain: int = 0  # of that metric, since the best one


@dataclass(frozen=True, slots=True)
class StepResult:
    """Metrics of one optimizer step, over all ranks."""

    step: int  # from 1
    loss: float  # nats per supervised token (per sequence with train.calculate_per_token_loss=false)
    lr: float  # learning rate of the first parameter group
    grad_norm: float  # before clipping
    tokens: int  # without padding
    trained_tokens: int  # supervised tokens
    seconds: float
    source_losses: dict[int, float] = field(default_factory=dict)  # mean over the source's supervised tokens
    router_aux_loss: float | None = None  # load-balancing loss without its factor; None if train.router_aux_loss is off


def train_loop(
    model: DecoderModel,
    optimizer: OptimizerSet,
    rows: TrainingRows,
    state: TrainState,
    recipe: Recipe,
    total_steps: int,
    *,
    after_step: Callable[[StepResult], None],
    should_stop: Callable[[], bool],
) -> None:
    """Train from `state` up to `total_steps`, or until `should_stop()` is true after a step. Updates `state` in place.

    `rows` are the packed sequences by global index; `after_step` is called after every optimizer step. NonFiniteLossError
    if a loss or gradient is not finite.
    """

    def local_rows(steps_ahead: int) -> list[int]:
        micro_batches = assign_rows(
            rows, rows_of_step(state, recipe, steps_ahead), recipe.train.micro_batch_size, model.mesh
        )
        return [number for numbers in micro_batches for number in numbers]

    attach_router_counters(model, recipe.train)
    with Prefetcher(rows) as ahead:
        ahead.expect(local_rows(0))
        while state.step < total_steps:
            if state.step + 1 < total_steps:
                ahead.expect(local_rows(1))
            result = optimizer_step(model, optimizer, ahead, state, recipe, total_steps)
            after_step(result)
            if should_stop():
                return


def rows_of_step(state: TrainState, recipe: Recipe, steps_ahead: int = 0) -> range:
    """Global indices of the packed sequences of the next step (all ranks), or of the step `steps_ahead` after it."""
    first = state.rows_consumed + steps_ahead * recipe.rows_per_step
    return range(first, first + recipe.rows_per_step)


def optimizer_step(
    model: DecoderModel,
    optimizer: OptimizerSet,
    rows: TrainingRows,
    state: TrainState,
    recipe: Recipe,
    total_steps: int,
) -> StepResult:
    """One update from the next `recipe.rows_per_step` packed sequences. NonFiniteLossError, before the update, if the loss
    or the gradient norm is not finite."""
    started = time.perf_counter()
    mesh, train = model.mesh, recipe.train
    numbers = rows_of_step(state, recipe)
    micro_batches = assign_rows(rows, numbers, train.micro_batch_size, mesh)
    noise = train.neftune_alpha, recipe.seed + state.step
    batches = load_batches(rows, micro_batches, model, recipe.micro_batch_tokens, noise)
    tokens, trained_tokens, trained_sequences = count_all(batches, mesh)
    count = max(1, trained_tokens if train.calculate_per_token_loss else trained_sequences)

    seed = dropout_seed(recipe.seed, state.step, mesh)
    model.train()
    optimizer.zero_grad()
    torch.manual_seed(seed)
    router_aux_loss = set_balancing_loss(model, batches, train.router_aux_loss)
    torch.manual_seed(seed)
    losses, token_losses = forward_backward(model, batches, count)
    model.noise = None  # only for training
    grad_norm = clip_gradients(model, train.clip_grad)
    loss = sum_over_ranks([float(torch.stack(losses).sum())], mesh)[0]
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        raise _not_finite(losses, micro_batches, mesh)

    # the last synchronization with the device: the update runs while the host continues
    sources = source_sums(batches, token_losses, mesh)
    optimizer.set_rate(lr_factor(state.step, total_steps, recipe))
    optimizer.step()
    update_router_bias(model, train.router_bias_update_rate)
    state.step += 1
    state.rows_consumed += len(numbers)
    state.tokens += tokens
    state.trained_tokens += trained_tokens
    return StepResult(
        step=state.step,
        loss=loss / count,
        lr=next(optimizer.param_groups())["lr"],
        grad_norm=grad_norm,
        tokens=tokens,
        trained_tokens=trained_tokens,
        seconds=time.perf_counter() - started,
        source_losses={source: total / n for source, (total, n) in sources.items()},
        router_aux_loss=router_aux_loss,
    )


def count_all(batches: list[Batch], mesh: Mesh) -> tuple[int, int, int]:
    """(tokens, supervised tokens, documents with a supervised token) over all ranks."""
    counts = [[batch.num_tokens, batch.num_trained, batch.num_trained_sequences] for batch in batches]
    local = [float(sum(column)) * mesh.is_row_owner for column in zip(*counts, strict=True)]
    tokens, trained, sequences = (int(total) for total in sum_over_ranks(local, mesh))
    return tokens, trained, sequences


def dropout_seed(seed: int, step: int, mesh: Mesh) -> int:
    """Dropout seed as a function of the step, so a resume needs no RNG state; ranks with the same tokens get the same seed."""
    place = (mesh.pp.rank * mesh.dp.size + mesh.dp.rank) * mesh.cp.size + mesh.cp.rank
    return (seed + step) * mesh.pp.size * mesh.dp.size * mesh.cp.size + place


def source_sums(batches: list[Batch], token_losses: list[torch.Tensor], mesh: Mesh) -> dict[int, tuple[float, int]]:
    """Source index -> (summed loss in nats, supervised tokens), over all ranks, for sources with supervised tokens.

    `token_losses`: for each batch the loss of every local token (t,).
    """
    sources = torch.cat([batch.source_ids for batch in batches])
    trained = torch.cat([batch.targets for batch in batches]) != IGNORE_INDEX
    losses = torch.cat(token_losses).double()
    if mesh.pp.rank < mesh.pp.size - 1:  # the losses are on the last stage
        trained, losses = torch.zeros_like(trained), torch.zeros_like(losses)
    number = int(max_over_ranks(int(sources.max()), mesh)) + 1
    empty = losses.new_zeros(number)
    sums = empty.index_add(
        0, sources, losses
    ).tolist()  # has a deterministic algorithm, which a weighted bincount has not
    counts = empty.index_add(0, sources, trained.double()).tolist()
    totals = sum_over_ranks(sums + counts, mesh)
    return {i: (total, int(n)) for i, (total, n) in enumerate(zip(totals[:number], totals[number:], strict=True)) if n}


def _not_finite(losses: list[torch.Tensor], micro_batches: list[list[int]], mesh: Mesh) -> NonFiniteLossError:
    """The error with the packed sequences, of all ranks, whose loss is not finite; all of the step if it is the gradient."""
    bad = [numbers for numbers, loss in zip(micro_batches, losses, strict=True) if not torch.isfinite(loss)]
    everywhere = [numbers for part in all_gather_objects(bad, mesh) for numbers in part]
    quantity = "loss" if everywhere else "gradient"
    everywhere = everywhere or [numbers for part in all_gather_objects(micro_batches, mesh) for numbers in part]
    names = spelled({number for numbers in everywhere for number in numbers})
    return NonFiniteLossError(
        f"the {quantity} is not finite in packed sequences {names} of the train split; the model was not updated. Lower "
        "optimizer.lr, or inspect the sequences with runner=inspect"
    )


def spelled(numbers: set[int]) -> str:
    """A set of indices as text: {3, 4, 5, 9} becomes `3-5, 9`."""
    ends = [number for number in sorted(numbers) if number + 1 not in numbers]
    starts = [number for number in sorted(numbers) if number - 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
