"""The config of tests that train: four packed rows per step, eight steps."""

import dataclasses
from typing import Any

from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.optim import AdamW, Muon, Scheduler


def make_cfg(optimizer: str = "adamw", train: dict[str, Any] | None = None, **fields: Any) -> SftConfig:
    """`train` takes fields of TrainConfig, `fields` those of SftConfig."""
    cfg = SftConfig(
        model=ModelConfig(name="test"),
        optimizer=Muon(lr=1e-2, matrix_lr=0.05) if optimizer == "muon" else AdamW(lr=1e-2, weight_decay=0.1),
        scheduler=Scheduler(kind="cosine", warmup_iters=3),
        **fields,
    )
    cfg.train = dataclasses.replace(cfg.train, global_batch_size=4, train_iters=8, **(train or {}))
    return cfg
