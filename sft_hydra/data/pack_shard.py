"""Second half of a shard's work: a spool and its rows' splits -> packed Parquet shards (`pack_shard`).

Invariant: the only place where the mask is rolled: stored[j] = trained(j + 1) inside each sequence, its last 0.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_hydra.data.pack import pack
from sft_hydra.data.plan import Plan, ShardPlan
from sft_hydra.data.shards import SPLITS, PackedColumns, ShardWriter, checksum, pieces_of
from sft_hydra.data.spool import Spool, read_spool

WINDOW_TOKENS = 32 << 20  # sequences are packed this many tokens at a time, so that memory stays bounded


def pack_shard(plan: Plan, shard: ShardPlan, spool_folder: Path, splits: NDArray[np.int8], folder: Path) -> list[Any]:
    """Write the shard's rows of each split. `splits` (rows,): index into SPLITS, or -1 for a row left out.
    Returns metadata entries with the row index under `index`."""
    spool = read_spool(spool_folder)
    starts = np.cumsum(spool.lengths) - spool.lengths
    of_sequence = splits[spool.row_of] if len(spool.row_of) else np.zeros(0, np.int8)
    entries = []
    for number, split in enumerate(SPLITS):
        chosen = np.flatnonzero(of_sequence == number)
        if len(chosen):
            writer = ShardWriter(folder / split / f"shard_{shard.number:06d}.parquet")
            parts = []
            for columns in _pack(plan, shard, spool, chosen, starts):
                writer.write(columns)
                parts.append(_index(columns, shard.source))
            writer.close()
            entries.append(_entry(writer.path, split, shard.source, len(chosen), np.concatenate(parts)))
    return entries


def _pack(
    plan: Plan, shard: ShardPlan, spool: Spool, chosen: NDArray[np.int64], starts: NDArray[np.int64]
) -> Iterator[PackedColumns]:
    window = np.cumsum(spool.lengths[chosen]) // WINDOW_TOKENS
    for sequences in np.split(chosen, np.flatnonzero(np.diff(window)) + 1):
        bins = pack(spool.lengths[sequences], plan.seq_length, plan.data.packing, plan.seed)
        order = sequences[np.concatenate([np.array(members) for members in bins])]
        yield gather(spool, order, np.array([len(members) for members in bins]), starts, shard.source)


def _index(columns: PackedColumns, source: int) -> NDArray[np.int64]:
    """Tokens, trained tokens and source of each packed row, (rows, 3)."""
    tokens = np.diff(columns.token_offsets).astype(np.int64)
    rows = np.split(columns.loss_mask.view(bool), columns.token_offsets[1:-1])
    trained = [np.count_nonzero(row) for row in rows]
    return np.stack([tokens, trained, np.full(len(tokens), source)], axis=1)


def _entry(path: Path, split: str, source: int, sequences: int, index: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "file": f"{split}/{path.name}",
        "split": split,
        "source": source,
        "rows": len(index),
        "sequences": sequences,
        "tokens": int(index[:, 0].sum()),
        "trained_tokens": int(index[:, 1].sum()),
        "bytes": path.stat().st_size,
        "sha256": checksum(path),
        "pieces": pieces_of(path),
        "index": index,
    }


def gather(
    spool: Spool, order: NDArray[np.int64], sizes: NDArray[np.int64], starts: NDArray[np.int64], source: int
) -> PackedColumns:
    """The sequences in `order`, `sizes[b]` of them in packed row b, with the mask rolled left inside each."""
    lengths = spool.lengths[order]
    slices = [slice(a, a + n) for a, n in zip(starts[order].tolist(), lengths.tolist(), strict=True)]
    ids = np.concatenate([spool.input_ids[part] for part in slices])
    mask = np.concatenate([spool.loss_mask[part] for part in slices])
    ends = np.cumsum(lengths)
    rolled = np.empty_like(mask)
    rolled[:-1] = mask[1:]
    rolled[ends - 1] = 0
    sequence_offsets = np.concatenate([[0], np.cumsum(sizes)])
    token_offsets = np.concatenate([[0], ends])[sequence_offsets]
    seq_start = (ends - lengths) - np.repeat(token_offsets[:-1], sizes)
    return PackedColumns(
        ids,
        rolled,
        seq_start.astype(np.int32),
        np.full(len(order), source, np.int16),
        token_offsets.astype(np.int32),
        sequence_offsets.astype(np.int32),
    )
