"""Rows of new tokens in embedding and head: each starts as the mean of the rows of all tokens that the model knows."""

from typing import Any

import torch

from sft_hydra.chat.tokenizer import NewTokens
from sft_hydra.parallel.dtensor import local_shard

ROWS = 8192  # of the table that are read at a time


@torch.no_grad()
def start_new_rows(tensor: torch.Tensor, table: Any, new: NewTokens) -> None:
    """Set the rows of a loaded embedding or head (vocab, hidden) that belong to new tokens, or that `table`, a slice of the
    file (rows, hidden), does not have. Computed from the file in fp64, so that it is the same under every layout."""
    stored = table.get_shape()[0]
    fresh = [*(id_ for id_ in new.ids if new.known <= id_ < stored), *range(stored, tensor.shape[0])]
    part, where = local_shard(tensor)
    own = [id_ for id_ in fresh if where[0].start <= id_ < where[0].stop]
    if not own or not part.numel():
        return
    known = min(new.known, stored) or stored
    total = sum(table[row : min(row + ROWS, known)].double().sum(0) for row in range(0, known, ROWS))
    assert isinstance(total, torch.Tensor)
    part[[id_ - where[0].start for id_ in own]] = (total / known)[where[1]].to(part)
