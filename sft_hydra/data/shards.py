"""Packed format v1 on disk: `PackedSet` reads a folder of shards (shard_file.py).

    <folder>/{train,valid,test}/shard_<i>.parquet    input_ids, loss_mask, seq_start_id, source_id; row groups of 64
    <folder>/{train,valid,test}/rows.npy             (rows, 3) int64: tokens, supervised tokens, source of each packed row
    <folder>/rejects.jsonl                           rejected rows, with origin and reason
    <folder>/metadata.json                           written last: a folder without it is not a packed set

Invariant: only files listed in metadata.json are read. The first three columns are those that Megatron-Bridge reads.
"""

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from sft_hydra.data.shard_file import ROW_GROUP, PackedColumns, checksum, columns_of, crc32, list_column
from sft_hydra.errors import DataError, MissingPackedDataError
from sft_hydra.files import exists, read_object, unreadable
from sft_hydra.records import PackedRow

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
AGAIN = "prepare again with data.force=true, or copy it again"
CACHED_GROUPS = 256
CACHED_TOKENS = CACHED_GROUPS * ROW_GROUP * 4096  # other tools write row groups of a thousand rows
NOT_OURS = (
    "not a packed set of this project. If another tool packed it, set data.trust_foreign=true; to prepare a new set, choose "
    "another data.packed_dir"
)


def _problem(metadata: dict[str, Any]) -> str | None:
    """Why metadata is not that of a packed set; None if it is."""
    shards, sources = metadata.get("shards"), metadata.get("sources")
    words = {"file": str, "split": str, "rows": int, "bytes": int}
    if not isinstance(sources, list) or not all(
        isinstance(s, dict) and isinstance(s.get("name"), str) for s in sources
    ):
        return "sources are missing"
    if not isinstance(shards, list) or not all(
        isinstance(s, dict) and all(isinstance(s.get(key), kind) for key, kind in words.items()) for s in shards
    ):
        return "shards are missing"
    if not isinstance(metadata.get("splits", {}), dict) or not isinstance(metadata.get("pack_size"), int):
        return "pack_size or splits are missing"
    return None


class PackedSet:
    """A folder of packed rows. Open it with `PackedSet.open`."""

    def __init__(self, folder: Path, metadata: dict[str, Any], rows: dict[str, NDArray[np.int64]]) -> None:
        self.folder = folder
        self.metadata = metadata
        self.sources: list[str] = [source["name"] for source in metadata["sources"]]
        self._rows = rows
        self._shards = {split: [s for s in metadata["shards"] if s["split"] == split] for split in SPLITS}
        self._firsts = {
            split: np.cumsum([0, *(shard["rows"] for shard in shards)]) for split, shards in self._shards.items()
        }
        self._files: dict[str, tuple[parquet.ParquetFile, NDArray[np.int64]]] = {}
        self._pieces = {shard["file"]: shard.get("pieces", []) for shard in metadata["shards"]}
        # source ids in foreign files refer to metadata that we do not have
        self._source_of = {s["file"]: s["source"] if metadata.get("foreign") else None for s in metadata["shards"]}
        self._groups: OrderedDict[tuple[str, int], PackedColumns] = OrderedDict()
        self._squares: dict[str, NDArray[np.int64]] = {}
        self._reading = Lock()  # training prefetches in a thread

    @classmethod
    def open(cls, folder: Path | str, trust_foreign: bool = False) -> "PackedSet":
        """The packed set in a folder. `trust_foreign`: accept Parquet files of another tool.
        Raises MissingPackedDataError or DataError."""
        folder = Path(folder)
        path = folder / "metadata.json"
        if trust_foreign and folder.is_dir() and not is_ours(folder):
            from sft_hydra.data.external_packed import read_foreign

            return cls(folder, *read_foreign(folder))
        if not exists(path):
            raise MissingPackedDataError(f"{folder}: not a packed set (metadata.json is missing)")
        if not is_ours(folder):
            raise DataError(f"{folder}: {NOT_OURS}")
        metadata = read_object(path, error=DataError, fix=AGAIN)
        if metadata.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path}: format version {metadata.get('format_version')}, this version of sft_hydra reads {FORMAT_VERSION}; prepare the data again"
            )
        if problem := _problem(metadata):
            raise unreadable(path, problem, DataError, AGAIN)
        missing = [s["file"] for s in metadata["shards"] if not (folder / s["file"]).is_file()]
        missing += [
            s["file"] for s in metadata["shards"] if s["file"] not in missing and _size(folder, s) != s["bytes"]
        ]
        if missing:
            raise DataError(
                f"{folder}: shards missing or truncated: {', '.join(missing[:5])}. Prepare the data again with data.force=true"
            )
        rows = {}
        for split in SPLITS:
            index = folder / split / "rows.npy"
            recorded = metadata.get("splits", {}).get(split, {})  # may be missing in a set written by another tool
            if recorded.get("rows") and (
                not index.is_file() or recorded.get("rows_sha256") not in (None, checksum(index))
            ):
                raise DataError(
                    f"{index}: corrupt. Prepare the data again with data.force=true, or copy the file again"
                )
            try:
                rows[split] = np.load(index, allow_pickle=False) if exists(index) else np.zeros((0, 3), np.int64)
            except (OSError, ValueError, EOFError) as problem:
                raise unreadable(index, problem, DataError, AGAIN) from None
        return cls(folder, metadata, rows)

    @property
    def num_conversations(self) -> int:
        """Number of conversations; for a set of another tool, the number of sequences."""
        sources = self.metadata["sources"]
        return sum(source["sequences"] if source["kept"] is None else source["kept"] for source in sources)

    @property
    def unknown(self) -> str:
        """For a set of another tool, a phrase that lists what is unknown about it."""
        tokenizer = self.metadata["tokenizer"]["path"]
        size = "" if self.metadata["pack_size"] else "sequence length, "
        return (
            f"{size}template, rejected rows, and tokenizer files"
            + (f" (tokenizer in its metadata: {tokenizer})" if tokenizer else "")
            + "; runner=inspect shows the supervised tokens"
        )

    def fill(self, seq_length: int) -> float:
        """Packing efficiency of the train split: tokens / (rows * seq_length), in [0, 1]."""
        return float(self.row_tokens("train").sum()) / max(1, self.num_rows("train") * seq_length)

    def num_rows(self, split: str) -> int:
        """Number of packed rows of a split."""
        return int(self._firsts[split][-1])

    def row_tokens(self, split: str) -> NDArray[np.int64]:
        """Tokens of each packed row, (rows,)."""
        return self._rows[split][:, 0]

    def row_trained(self, split: str) -> NDArray[np.int64]:
        """Supervised tokens of each packed row, (rows,)."""
        return self._rows[split][:, 1]

    def row_source(self, split: str) -> NDArray[np.int64]:
        """Index into `sources` of each packed row, (rows,)."""
        return self._rows[split][:, 2]

    def row_squares(self, split: str) -> NDArray[np.int64]:
        """Sum of the squared lengths of each packed row's sequences, (rows,). Reads the sequence starts of all rows."""
        if split not in self._squares:
            shards = [self._starts_of(shard["file"]) for shard in self._shards[split]]
            counts = np.concatenate([np.zeros(0, np.int64), *(counts for counts, _ in shards)])
            starts = np.concatenate([np.zeros(0, np.int64), *(starts for _, starts in shards)])
            tokens, ends = self.row_tokens(split), counts.cumsum()
            follows = np.append(starts[1:], 0)
            follows[ends - 1] = tokens  # the last sequence of a row ends with it
            squares = np.append(0, np.square(follows - starts).cumsum())
            self._squares[split] = squares[ends] - squares[ends - counts]
        return self._squares[split]

    def _starts_of(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of sequences of each row of a shard, and their starts, concatenated."""
        file = self._open_shard(name)
        if "seq_start_id" not in file.schema_arrow.names:  # set of another tool: a row is one sequence
            rows = file.metadata.num_rows
            return np.ones(rows, np.int64), np.zeros(rows, np.int64)
        starts, offsets = list_column(file.read(["seq_start_id"]), "seq_start_id", np.int64)
        return np.diff(offsets).astype(np.int64), starts

    def row(self, split: str, index: int) -> PackedRow:
        """Packed row `index` of a split. IndexError if there is none."""
        if not 0 <= index < self.num_rows(split):
            raise IndexError(f"{split} row {index} of {self.num_rows(split)}")
        number = int(np.searchsorted(self._firsts[split], index, side="right")) - 1
        with self._reading:
            columns, inside = self._group(self._shards[split][number]["file"], index - int(self._firsts[split][number]))
        a, b = columns.token_offsets[inside : inside + 2]
        c, d = columns.sequence_offsets[inside : inside + 2]
        return PackedRow(
            columns.input_ids[a:b], columns.loss_mask[a:b], columns.seq_start_id[c:d], columns.source_id[c:d]
        )

    def _open_shard(self, name: str) -> parquet.ParquetFile:
        self._check(name, -1)
        try:
            return parquet.ParquetFile(self.folder / name)
        except (OSError, LookupError, ValueError, pa.ArrowException) as problem:
            raise self._broken(name, problem) from None

    def _check(self, name: str, piece: int) -> None:
        """Verify the checksum, if recorded, of a row group or, with -1, of the footer."""
        pieces = self._pieces[name]
        if pieces:
            number = piece % len(pieces)
            begin = pieces[number - 1][0] if number else 0
            end, written = pieces[number]
            if crc32(self.folder / name, begin, end) != written:
                raise self._broken(name, "checksum mismatch")

    def _broken(self, name: str, problem: object) -> DataError:
        return DataError(
            f"{self.folder / name}: corrupt ({problem}). Prepare the data again with data.force=true, or copy the file again"
        )

    def verify(self) -> list[str]:
        """Files whose checksum differs from the metadata."""
        return [s["file"] for s in self.metadata["shards"] if checksum(self.folder / s["file"]) != s["sha256"]]

    def _group(self, name: str, row: int) -> tuple[PackedColumns, int]:
        if name not in self._files:
            file = self._open_shard(name)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            self._files[name] = file, np.cumsum([0, *sizes])
        file, firsts = self._files[name]
        group = int(np.searchsorted(firsts, row, side="right")) - 1
        key = (name, group)
        if key in self._groups:
            self._groups.move_to_end(key)
        else:
            self._check(name, group)
            try:
                self._groups[key] = columns_of(file.read_row_group(group), self._source_of[name])
            except (OSError, LookupError, ValueError, pa.ArrowException) as problem:
                raise self._broken(name, problem) from None
            while len(self._groups) > 1 and (
                len(self._groups) > CACHED_GROUPS
                or sum(len(columns.input_ids) for columns in self._groups.values()) > CACHED_TOKENS
            ):
                self._groups.popitem(last=False)
        return self._groups[key], row - int(firsts[group])


def _size(folder: Path, shard: dict[str, Any]) -> int:
    return (folder / str(shard["file"])).stat().st_size


def is_ours(folder: Path) -> bool:
    """Whether the folder has a metadata.json of this project; true for a corrupt one, which the reader reports."""
    try:
        return exists(folder / "metadata.json") and "format_version" in read_object(
            folder / "metadata.json", error=DataError, fix=AGAIN
        )
    except DataError:
        return True
