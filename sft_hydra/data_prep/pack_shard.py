"""Second stage of a shard: a token store and the split of each row -> packed Parquet shards (`ShardPacker`).

Invariant: the only place where the loss mask is shifted: stored[j] = supervised(j + 1) inside each sequence, 0 at its last
token.

Owner of: the loss mask is shifted left once, when shards are written.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sft_hydra.data.shard_file import ROW_GROUP, PackedColumns, ShardWriter, arrow_array, checksum, pieces_of
from sft_hydra.data.shards import SPLITS
from sft_hydra.data_prep.ordered_executor import OrderedExecutor
from sft_hydra.data_prep.pack import pack
from sft_hydra.data_prep.plan import Plan, ShardPlan
from sft_hydra.data_prep.token_store import TokenStore, read_token_store

WINDOW_TOKENS = 32 << 20  # sequences are packed this many tokens at a time, so that memory stays bounded
WRITTEN_TOGETHER = 4 * ROW_GROUP  # packed sequences gathered at a time; the file is the same as from one write


class ShardPacker:
    """Packs shards of one plan into `folder`; a context manager. Two threads write the files."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.threads = [OrderedExecutor(WINDOW_TOKENS) for _ in range(2)]
        self.written = 0

    def __enter__(self) -> "ShardPacker":
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.close()

    def pack(self, shard: ShardPlan, spool_folder: Path, splits: NDArray[np.int8]) -> list[Any]:
        """Pack the shard's rows of each split. `splits` (rows,): index into SPLITS, or -1 for a repeated row.
        Returns metadata entries, with the index of packed sequences under `index`; complete after `finish`."""
        spool = read_token_store(spool_folder)
        starts = np.cumsum(spool.lengths) - spool.lengths
        of_sequence = splits[spool.row_of] if len(spool.row_of) else np.zeros(0, np.int8)
        entries: list[Any] = []
        for number, split in enumerate(SPLITS):
            chosen = np.flatnonzero(of_sequence == number)
            if len(chosen):
                writer = ShardWriter(self.folder / split / f"shard_{shard.number:06d}.parquet")
                entry = {"file": f"{split}/{writer.path.name}", "split": split, "source": shard.source}
                entries.append(entry)
                thread = self.threads[self.written % 2]
                self.written += 1
                index: list[NDArray[np.int64]] = []  # filled by the thread
                for order, sizes in _bins(self.plan, spool, chosen):
                    write = partial(_write, writer, spool, order, sizes, starts, shard.source, index)
                    tokens = int(spool.lengths[order].sum())
                    thread.submit(write, lambda _: None, ready=False, weight=tokens)
                close = partial(_close, writer, len(chosen), index)
                thread.submit(close, entry.update, ready=False)
        return entries

    def finish(self) -> None:
        """Wait until all files are written. Raises what writing raised."""
        for thread in self.threads:
            thread.finish()


def _bins(
    plan: Plan, spool: TokenStore, chosen: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The order of the sequences `chosen`, and how many are in each packed sequence, WINDOW_TOKENS at a time."""
    window = np.cumsum(spool.lengths[chosen]) // WINDOW_TOKENS
    for sequences in np.split(chosen, np.flatnonzero(np.diff(window)) + 1):
        bins = pack(spool.lengths[sequences], plan.seq_length, plan.data.packing, plan.seed)
        sizes = np.array([len(members) for members in bins], np.int64)
        yield sequences[np.fromiter(chain.from_iterable(bins), np.int64, len(sequences))], sizes


def _write(
    writer: ShardWriter,
    spool: TokenStore,
    order: NDArray[np.int64],
    sizes: NDArray[np.int64],
    starts: NDArray[np.int64],
    source: int,
    index: list[NDArray[np.int64]],
) -> None:
    """Write the sequences in `order` (sequences,), `sizes[b]` of them in packed sequence b; appends to `index`."""
    edges = np.concatenate([[0], np.cumsum(sizes)])
    for first in range(0, len(sizes), WRITTEN_TOGETHER):
        own = sizes[first : first + WRITTEN_TOGETHER]
        columns = gather(spool, order[edges[first] : edges[first + len(own)]], own, starts, source)
        index.append(_index(columns, source))
        writer.write(columns)


def _index(columns: PackedColumns, source: int) -> NDArray[np.int64]:
    """Tokens, supervised tokens and source of each packed sequence: (rows, 3)."""
    tokens = np.diff(columns.token_offsets).astype(np.int64)
    rows = np.split(columns.loss_mask.view(bool), columns.token_offsets[1:-1])
    trained = [np.count_nonzero(row) for row in rows]
    return np.stack([tokens, trained, np.full(len(tokens), source)], axis=1)


def _close(writer: ShardWriter, sequences: int, parts: list[NDArray[np.int64]]) -> dict[str, Any]:
    """Close a shard's file; its counts and checksums for metadata.json."""
    writer.close()
    path = writer.path
    index = np.concatenate(parts)
    return {
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
    spool: TokenStore, order: NDArray[np.int64], sizes: NDArray[np.int64], starts: NDArray[np.int64], source: int
) -> PackedColumns:
    """The columns of a packed shard: the sequences in `order` (sequences,), `sizes[b]` of them in packed sequence b, with the
    mask shifted left by one inside each. `starts[i]`: offset in tokens of sequence i in the store."""
    lengths = spool.lengths[order]
    ids, mask = _take(spool.input_ids, starts, order), _take(spool.loss_mask, starts, order)
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


def _take(values: NDArray[Any], starts: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[Any]:
    """The parts `order` of an array that begin at `starts`, end to end. Arrow copies them as if they were texts: eight times as
    fast as slices, and without the GIL."""
    offsets = np.append(starts, len(values)) * values.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    parts = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), buffers)
    return np.frombuffer(parts.take(arrow_array(order)).buffers()[2] or b"", values.dtype)
