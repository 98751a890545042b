"""The training loop and the optimizer step.

Owns the normalisation of the loss: losses of all trained tokens of the global batch are summed and divided once, so that
accumulation, packing and layouts change nothing. Owns what a step does, in which order.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from sft_hydra.config.schema import SftConfig
from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.engine.optimizer import OptimizerSet
from sft_hydra.engine.precision import autocast
from sft_hydra.engine.schedule import rate_factor, rows_per_step
from sft_hydra.errors import NonFiniteLossError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.records import IGNORE_INDEX, PackedRow


class Rows(Protocol):
    """Packed rows by their global number: row i is the same whenever it is asked for."""

    def __getitem__(self, index: int, /) -> PackedRow: ...


@dataclass(slots=True)
class TrainState:
    """Where training stands; all that a resume needs beside weights and moments."""

    step: int = 0  # optimizer steps done
    rows_consumed: int = 0
    tokens: int = 0
    trained_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    step: int  # from 1
    loss: float
    lr: float  # of the first group
    grad_norm: float  # before clipping
    tokens: int
    trained_tokens: int
    seconds: float
    source_losses: dict[int, float] = field(default_factory=dict)  # mean over the source's trained tokens


def fit(
    model: DecoderModel,
    optimizer: OptimizerSet,
    rows: Rows,
    state: TrainState,
    cfg: SftConfig,
    total_steps: int,
    *,
    after_step: Callable[[StepResult], None],
    should_stop: Callable[[], bool],
) -> None:
    """Train from `state` up to `total_steps`, or until `should_stop()` is true after a step. Updates `state` in place."""
    while state.step < total_steps:
        result = optimizer_step(model, optimizer, rows, state, cfg, total_steps)
        after_step(result)
        if should_stop():
            return


def optimizer_step(
    model: DecoderModel, optimizer: OptimizerSet, rows: Rows, state: TrainState, cfg: SftConfig, total_steps: int
) -> StepResult:
    """One update from the next `rows_per_step(cfg)` rows. NonFiniteLossError before the update if a loss is not finite."""
    started = time.perf_counter()
    device = model.head_weight.device
    numbers = range(state.rows_consumed, state.rows_consumed + rows_per_step(cfg))
    size = cfg.train.micro_batch_size
    micro_batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    batches = [make_batch([rows[n] for n in micro_batch], device) for micro_batch in micro_batches]
    trained_tokens = sum(batch.num_trained for batch in batches)
    trained_sequences = sum(batch.num_trained_sequences for batch in batches)
    count = trained_tokens if cfg.train.calculate_per_token_loss else trained_sequences

    torch.manual_seed(cfg.seed + state.step)  # dropout is a function of the step: a resume needs no generator state
    model.train()
    optimizer.zero_grad()
    losses, token_losses = [], []
    for batch in batches:
        with autocast(cfg, device):
            loss_sum, per_token = forward_loss(model, batch)
        (loss_sum / max(1, count)).backward()
        losses.append(loss_sum.detach())
        token_losses.append(per_token)
    grad_norm = _clip(optimizer, cfg.train.clip_grad)
    _check_finite(torch.stack(losses), grad_norm, micro_batches)

    optimizer.set_rate(rate_factor(state.step, total_steps, cfg))
    optimizer.step()
    tokens = sum(len(batch.input_ids) for batch in batches)
    state.step += 1
    state.rows_consumed += len(numbers)
    state.tokens += tokens
    state.trained_tokens += trained_tokens
    return StepResult(
        step=state.step,
        loss=float(sum(losses)) / max(1, count),
        lr=next(optimizer.param_groups())["lr"],
        grad_norm=float(grad_norm),
        tokens=tokens,
        trained_tokens=trained_tokens,
        seconds=time.perf_counter() - started,
        source_losses={source: total / n for source, (total, n) in source_sums(batches, token_losses).items()},
    )


def forward_loss(model: DecoderModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the losses of the batch's trained tokens, and the loss of every token (T,)."""
    return model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen, batch.targets)


def source_sums(batches: list[Batch], token_losses: list[torch.Tensor]) -> dict[int, tuple[float, int]]:
    """Summed loss and number of trained tokens of each source that has any."""
    sources = torch.cat([batch.source_ids for batch in batches])
    trained = torch.cat([batch.targets for batch in batches]) != IGNORE_INDEX
    sums = torch.bincount(sources, weights=torch.cat(token_losses).double()).tolist()
    counts = torch.bincount(sources, weights=trained.double()).tolist()
    return {source: (sums[source], int(count)) for source, count in enumerate(counts) if count}


def _clip(optimizer: OptimizerSet, limit: float | None) -> torch.Tensor:
    """Norm of the whole gradient, which is scaled down to `limit` if it is larger."""
    return torch.nn.utils.clip_grad_norm_(optimizer.parameters(), float("inf") if limit is None else limit)


def _check_finite(losses: torch.Tensor, grad_norm: torch.Tensor, micro_batches: list[range]) -> None:
    if torch.isfinite(grad_norm) and torch.isfinite(losses).all():
        return
    bad = [n for n, ok in zip(micro_batches, torch.isfinite(losses).tolist(), strict=True) if not ok]
    what = "loss" if bad else "gradient"
    names = ", ".join(str(n[0]) if len(n) == 1 else f"{n[0]}-{n[-1]}" for n in bad or micro_batches)
    raise NonFiniteLossError(
        f"the {what} is not finite in training rows {names}; the model was not updated. Lower optimizer.lr, or look at "
        "the rows with runner=inspect"
    )
