"""Our parameters <-> the tensors in Hugging Face's files. Owns every difference between the two.

Dense families have none: names and shapes are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one of our parameters lies on disk: whole tensors that are stacked, or some rows of one tensor."""

    names: tuple[str, ...]
    stacked: bool = False  # our first dimension counts `names`
    rows: tuple[int, int] | None = None  # from, to; None: all


def stored(config: Any, name: str, shape: torch.Size) -> Stored:
    """Where parameter `name` of this shape lies."""
    return Stored((name,))


def ignorable(config: Any, disk_name: str) -> bool:
    """Whether a tensor on disk may be left out: what is computed from the config, or the copy of a tied embedding."""
    if disk_name.endswith("rotary_emb.inv_freq"):
        return True
    return disk_name == "lm_head.weight" and config.tie_word_embeddings


def to_disk(config: Any, state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors as they lie in files, in the order of `state`, one after the other."""
    yield from state.items()
