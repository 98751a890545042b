"""The `model` section: weights to start from, or an architecture."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from sft_hydra.schema.ranges import number


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The model: weights on disk or on the hub, or an architecture with random initialization."""

    name: str = MISSING
    """Short name; part of the run's name."""
    path: str | None = None
    """Hub id or folder of a Hugging Face model. null: random initialization with `architecture`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's config.json. With `path=null` they define the model; else a dry run uses them if
    `path` cannot be read without a network."""
    generic: bool = False
    """True: train through the transformers implementation (FSDP and LoRA only)."""
    init_std: float = number(0.02, 0, 100)
    """Standard deviation of random initialization."""
