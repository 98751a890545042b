"""The Parquet file of one shard: `PackedColumns` are its rows as arrays, `ShardWriter` writes it, `pieces_of` lists checksums."""

import hashlib
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

ROW_GROUP = 64
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.uint8())),
        ("seq_start_id", pa.list_(pa.int32())),
        ("source_id", pa.list_(pa.int16())),
    ]
)


@dataclass(frozen=True, slots=True)
class PackedColumns:
    """Concatenated rows. `token_offsets` (rows + 1,) separates ids and mask, `sequence_offsets` (rows + 1,) the starts."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]
    seq_start_id: NDArray[np.int32]
    source_id: NDArray[np.int16]
    token_offsets: NDArray[np.int64]
    sequence_offsets: NDArray[np.int64]

    def table(self) -> pa.Table:
        """The rows as an Arrow table in the format of a shard."""

        def lists(values: Any, offsets: Any) -> pa.ListArray:
            return pa.ListArray.from_arrays(arrow_array(offsets).cast(pa.int32()), arrow_array(values))

        tokens, sequences = self.token_offsets, self.sequence_offsets
        return pa.table(
            [
                lists(self.input_ids, tokens),
                lists(self.loss_mask, tokens),
                lists(self.seq_start_id, sequences),
                lists(self.source_id, sequences),
            ],
            schema=SCHEMA,
        )


def arrow_array(values: NDArray[Any]) -> pa.Array:
    """Numbers as an Arrow array, without a copy. `pa.array` would import pandas, which takes a tenth of a second in each process."""
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


class ShardWriter:
    """Writes one shard to `path`, under a temporary name until `close`, so that a file at `path` is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_suffix(".tmp")
        path.parent.mkdir(parents=True, exist_ok=True)

    @cached_property
    def writer(self) -> parquet.ParquetWriter:
        """The open Parquet file; created by the first rows."""
        return parquet.ParquetWriter(
            self.temporary,
            SCHEMA,
            compression="zstd",
            compression_level=1,
            use_dictionary=["loss_mask.list.element"],
            column_encoding={"input_ids.list.element": "BYTE_STREAM_SPLIT"},
            write_statistics=False,
        )

    def write(self, columns: PackedColumns) -> None:
        """Append rows."""
        self.writer.write_table(columns.table(), row_group_size=ROW_GROUP)

    def close(self) -> None:
        """Finish the file and give it its final name."""
        self.writer.close()
        os.replace(self.temporary, self.path)


def columns_of(table: pa.Table, source: int | None = None) -> PackedColumns:
    """A Parquet table as arrays. `source`: the source of all its rows; None: as in the table. Without a column of
    starts, a row is one sequence."""
    ids, tokens = list_column(table, "input_ids", np.int32)
    mask, _ = list_column(table, "loss_mask", np.uint8)
    if "seq_start_id" in table.column_names:
        starts, sequences = list_column(table, "seq_start_id", np.int32)
    else:
        starts, sequences = np.zeros(table.num_rows, np.int32), np.arange(table.num_rows + 1, dtype=np.int64)
    if source is None:
        sources = list_column(table, "source_id", np.int16)[0]
    else:
        sources = np.full(len(starts), source, np.int16)
    return PackedColumns(ids, mask, starts, sources, tokens, sequences)


def list_column(table: pa.Table, name: str, kind: Any) -> tuple[Any, NDArray[np.int64]]:
    """Values of a column of lists of any kind (variable, large, fixed size), concatenated, and the (rows + 1,) offsets."""
    column = table.column(name)
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    values = pc.list_flatten(column).to_numpy().astype(kind, copy=False)
    return values, np.append(0, np.cumsum(lengths))


def checksum(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pieces_of(path: Path) -> list[list[int]]:
    """[end, CRC-32] of the bytes of each row group of a shard and, last, of its footer."""
    footer = parquet.ParquetFile(path).metadata
    size = path.stat().st_size
    starts = [_first_byte(footer.row_group(group)) for group in range(1, footer.num_row_groups)]
    ends = [*starts, size - 8 - footer.serialized_size, size]
    return [[end, crc32(path, begin, end)] for begin, end in pairwise([0, *ends])]


def _first_byte(group: Any) -> int:
    columns = [group.column(index) for index in range(group.num_columns)]
    return min(int(column.dictionary_page_offset or column.data_page_offset) for column in columns)


def crc32(path: Path, begin: int, end: int) -> int:
    """CRC-32 of the bytes begin..end of a file."""
    with open(path, "rb") as stream:
        stream.seek(begin)
        return zlib.crc32(stream.read(end - begin))


def make_durable(files: list[Path]) -> None:
    """Flush these files to disk (fsync)."""

    def sync(path: Path) -> None:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync, files))
