"""Learning-rate schedule and number of optimizer steps. Torch-free, so that a dry run uses the same functions."""

import math

from sft_hydra.planning.recipe import Recipe
from sft_hydra.planning.topology import rows_per_step
from sft_hydra.schema.optim import Scheduler
from sft_hydra.schema.train import TrainConfig


def total_steps(train: TrainConfig, seq_length: int, rows_per_epoch: int) -> int:
    """Optimizer steps of the training run. Without a length in the config: one epoch, rounded up to a full last step."""
    if train.train_iters is not None and train.train_iters >= 0:
        return train.train_iters
    rows = float(rows_per_epoch)
    if train.epochs is not None:
        rows = train.epochs * rows_per_epoch
    elif train.train_samples is not None:
        rows = train.train_samples
    return max(1, math.ceil(rows / rows_per_step(train, seq_length)))


def lr_factor(step: int, total: int, recipe: Recipe) -> float:
    """Factor on the peak learning rates in step `step` (from 0) of `total`, in [0, 1].

    Warmup is linear and ends at the peak; the decay reaches the minimum one step after the last. `wsd` decays by
    1 - sqrt (Hägele et al. 2024).
    """
    scheduler = recipe.scheduler
    warmup = warmup_steps(recipe, total)
    if step < warmup:
        return (step + 1) / warmup
    if scheduler.kind == "constant":
        return 1.0
    decay = decay_steps(recipe, total)
    if decay is None:
        decay = total - warmup
    left = min(
        1.0, (total - step) / max(1, min(decay, total - warmup))
    )  # remaining fraction of the decay phase: 1 until it starts, 0 at the end
    minimum = _minimum(scheduler, recipe.optimizer.lr * recipe.optimizer.init_lr_frac)
    return minimum + (1 - minimum) * _shape(scheduler.kind, left)


def warmup_steps(recipe: Recipe, total: int) -> int:
    """Steps of the linear warm-up of a training of `total` steps."""
    scheduler = recipe.scheduler
    return _length(scheduler.warmup_iters, scheduler.warmup_samples, scheduler.warmup_ratio, total, recipe) or 0


def decay_steps(recipe: Recipe, total: int) -> int | None:
    """Steps of the decay as the config gives them; None: all steps after warm-up."""
    scheduler = recipe.scheduler
    return _length(scheduler.decay_iters, scheduler.decay_samples, scheduler.decay_ratio, total, recipe)


def _shape(kind: str, left: float) -> float:
    """Height, from 1 to 0, of the decay with the fraction `left` of it still to come."""
    if kind == "cosine":
        return 0.5 - 0.5 * math.cos(math.pi * left)
    if kind == "wsd":
        return 1 - math.sqrt(1 - left)
    return left  # warmdown


def _length(steps: int | None, samples: int | None, ratio: float | None, total: int, recipe: Recipe) -> int | None:
    """A phase length in steps, from steps, samples (packed sequences) or a ratio of training; None if none is set."""
    if steps is not None:
        return steps
    if samples is not None:
        return math.ceil(samples / recipe.rows_per_step)
    return None if ratio is None else round(ratio * total)


def _minimum(scheduler: Scheduler, peak: float) -> float:
    if scheduler.min_lr is not None:
        return scheduler.min_lr / peak if peak else 0.0  # a rate of 0 stays 0
    return scheduler.min_lr_frac or 0.0
