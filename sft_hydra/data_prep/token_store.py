"""The token store of a shard, between tokenizing and packing: flat files in a folder that is renamed when complete.

ids.bin, mask.bin    tokens of all sequences end to end, int32 and uint8 (before the shift)
sequences.npy        (sequences, 2) int64: length, row (index into rows.npy)
rows.npy             (rows,) of ROW: content hash, range and row number
rejects.jsonl        rejected rows and dropped sequences
counts.json          counters by name
"""

import json
import os
import secrets
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sft_hydra.errors import DataError

MOST_CHARS = 2000  # of the detail of a rejected row
ROW = np.dtype([("hash", "<u8"), ("range", "<i4"), ("number", "<i8")])


@dataclass(slots=True)
class TokenStore:
    """A complete tokenized shard. `input_ids` and `loss_mask` (tokens,); `lengths` and `row_of` (sequences,), the latter an index
    into `rows` (rows,) of ROW; `counts` by name."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    row_of: NDArray[np.int64]
    rows: NDArray[Any]
    counts: dict[str, Any]


class TokenStoreWriter:
    """Writes one shard's sequences to a temporary folder, which `close` renames to `folder`. After a failure, call `abandon`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")  # of this writer only
        self.temporary.mkdir(parents=True)
        self.ids = open(self.temporary / "ids.bin", "wb")  # noqa: SIM115 (closed by `close` or `abandon`)
        self.mask = open(self.temporary / "mask.bin", "wb")  # noqa: SIM115
        self.rejects = open(self.temporary / "rejects.jsonl", "wb")  # noqa: SIM115
        self.lengths: list[NDArray[np.int64]] = []
        self.row_of: list[NDArray[np.int64]] = []
        self.rows: list[NDArray[Any]] = []
        self.row_count = 0
        self.counts: Counter[str] = Counter()
        self.streams = (self.ids, self.mask, self.rejects)

    def add(
        self, ids: NDArray[np.int32], mask: NDArray[np.uint8], lengths: NDArray[np.int64], row_of: NDArray[np.int64]
    ) -> None:
        """Append sequences: `ids` and `mask` (tokens,), `lengths` and `row_of` (sequences,)."""
        ids.tofile(self.ids)
        mask.tofile(self.mask)
        self.lengths.append(lengths)
        self.row_of.append(row_of)

    def add_rows(self, rows: NDArray[Any]) -> None:
        """Append `rows` (rows,) of ROW."""
        self.rows.append(rows)
        self.row_count += len(rows)

    def reject(self, **entry: str) -> None:
        """Append a line to rejects.jsonl."""
        written = {key: _printable(text) for key, text in entry.items()}
        self.rejects.write(orjson.dumps(written) + b"\n")

    def close(self) -> None:
        """Write the remaining files and rename the folder. OSError if the disk is full."""
        for stream in self.streams:
            stream.close()
        empty = [np.zeros(0, np.int64)]
        sequences = np.stack([np.concatenate(self.lengths or empty), np.concatenate(self.row_of or empty)], axis=1)
        np.save(self.temporary / "sequences.npy", sequences)
        np.save(self.temporary / "rows.npy", np.concatenate(self.rows or [np.zeros(0, ROW)]))
        (self.temporary / "counts.json").write_text(json.dumps(self.counts))
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self.temporary, self.folder)

    def abandon(self) -> None:
        """Close the files of a shard that failed. The temporary folder stays; the next preparation removes it."""
        for stream in self.streams:
            with suppress(OSError):  # a full disk: the failure that is already being reported
                stream.close()


def _printable(text: str) -> str:
    """A text that UTF-8 can encode: lone surrogates are escaped, and it is truncated to MOST_CHARS."""
    return (text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}...").encode("utf-8", "backslashreplace").decode()


def read_token_store(folder: Path) -> TokenStore:
    """A complete tokenized shard, memory-mapped. DataError if its files are missing or inconsistent."""
    try:
        spool = _read_spool(folder)
        if not len(spool.input_ids) == len(spool.loss_mask) == spool.lengths.sum() or spool.rows.dtype != ROW:
            raise ValueError("the lengths of its files differ")
    except (OSError, ValueError, LookupError, EOFError, TypeError) as problem:
        raise DataError(
            f"{folder}: the token store is corrupt ({problem}); delete this folder and rerun the command to redo the shard"
        ) from None
    return spool


def _read_spool(folder: Path) -> TokenStore:
    sequences = np.load(folder / "sequences.npy")
    rows = np.load(folder / "rows.npy")
    counts = json.loads((folder / "counts.json").read_text())
    ids, mask = np.zeros(0, np.int32), np.zeros(0, np.uint8)
    if len(sequences):
        ids = np.asarray(np.memmap(folder / "ids.bin", np.int32, "r"))
        mask = np.asarray(np.memmap(folder / "mask.bin", np.uint8, "r"))
    return TokenStore(ids, mask, sequences[:, 0], sequences[:, 1], rows, counts)
