"""The sections and values of the config that a training step depends on: `Recipe`.

The training loop, the schedule and checkpoints take it in place of the whole config, so that their signatures show what
they use.
"""

from dataclasses import dataclass

from sft_hydra.planning.topology import rows_per_step
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.optim import Optimizer, Scheduler
from sft_hydra.schema.train import TrainConfig


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of the optimizer steps; a checkpoint records its sizes and learning rates."""

    train: TrainConfig
    optimizer: Optimizer
    scheduler: Scheduler
    seq_length: int  # tokens of a packed sequence
    seed: int

    @property
    def rows_per_step(self) -> int:
        """Packed sequences of one optimizer step, over all ranks (the global batch size)."""
        return rows_per_step(self.train, self.seq_length)

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of a full micro-batch on one data-parallel rank."""
        return self.train.micro_batch_size * self.seq_length


def recipe_of(cfg: SftConfig) -> Recipe:
    """The part of the config that training steps depend on."""
    return Recipe(cfg.train, cfg.optimizer, cfg.scheduler, cfg.seq_length, cfg.seed)
