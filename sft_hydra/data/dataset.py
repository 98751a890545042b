"""The packed sequences that training sees, in order: `TrainRows(packed, shares, seed, order)[row]`.

Invariant: row i of epoch e is a pure function of (seed, blend, e, i), so the data state of a run is one integer. A source
is an endless sequence of shuffled passes over its packed rows; an epoch takes the next part of each sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sft_hydra.data.shards import PackedSet
from sft_hydra.data.splits import mix
from sft_hydra.records import PackedRow
from sft_hydra.schema.data import RowOrder


@dataclass(frozen=True, slots=True)
class SourceShare:
    """One source in an epoch: `rows` of its `available` packed rows are drawn, `token_share` of the epoch's tokens."""

    name: str
    rows: int
    available: int
    token_share: float


class TrainRows:
    """Endless training rows of a packed set; `shares` in the order of `packed.sources`.

    `rows_per_epoch`: how many packed rows make an epoch of the blend.
    """

    def __init__(self, packed: PackedSet, shares: Sequence[SourceShare], seed: int, order: RowOrder) -> None:
        self.packed = packed
        self.seed = seed
        self.by_source = order is RowOrder.by_source
        self.shares = shares
        self.rows_per_epoch = sum(share.rows for share in self.shares)
        of_source = packed.row_source("train")
        self.members = [np.flatnonzero(of_source == index) for index in range(len(self.shares))]
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._pass = lru_cache(maxsize=2 * len(self.shares))(self._make_pass)

    def __getitem__(self, global_row: int) -> PackedRow:
        """Row `global_row` since the start of training, counted over all epochs."""
        epoch, inside = divmod(global_row, self.rows_per_epoch)
        return self.packed.row("train", int(self._epoch(epoch)[inside]))

    def costs(self, numbers: range) -> list[float]:
        """Attention costs of these rows, see `PackedSet.row_squares`."""
        places = (divmod(number, self.rows_per_epoch) for number in numbers)
        squares = self.packed.row_squares("train")
        return [float(squares[self._epoch(epoch)[inside]]) for epoch, inside in places]

    def unreached_sources(self, count: int) -> str | None:
        """A message naming sources that training on the first `count` rows never reaches, with `data.order=by_source`; else None."""
        starts = np.cumsum([0, *(share.rows for share in self.shares)])
        missed = [
            share.name for share, start in zip(self.shares, starts, strict=False) if share.rows and start >= count
        ]
        if not self.by_source or not missed:
            return None
        return (
            f"data.order=by_source: training uses {count:,} of {self.rows_per_epoch:,} rows and never reaches "
            f"{', '.join(missed)}; train longer, or use data.order=shuffle"
        )

    def indices(self, epoch: int) -> NDArray[np.int64]:
        """Indices of the packed rows of an epoch in order, (rows_per_epoch,)."""
        return self._epoch(epoch)

    def _make_epoch(self, epoch: int) -> NDArray[np.int64]:
        parts = [self._chain(index, epoch * share.rows, share.rows) for index, share in enumerate(self.shares)]
        rows = np.concatenate(parts)
        return rows if self.by_source else rows[shuffled(len(rows), self.seed, len(self.shares), epoch)]

    def _chain(self, source: int, start: int, count: int) -> NDArray[np.int64]:
        size = len(self.members[source])
        if not count:
            return np.zeros(0, np.int64)
        passes = range(start // size, (start + count - 1) // size + 1)
        chain = np.concatenate([self._pass(source, number) for number in passes])
        return chain[start - passes[0] * size :][:count]

    def _make_pass(self, source: int, number: int) -> NDArray[np.int64]:
        members = self.members[source]
        return members[shuffled(len(members), self.seed, source, number)]


def shuffled(count: int, *key: int) -> NDArray[np.int64]:
    """A permutation of `count` that depends only on the key, not on the version of numpy."""
    values = np.arange(count, dtype=np.uint64)
    for part in key:
        values = mix(values, part)
    return np.argsort(values, kind="stable").astype(np.int64)
