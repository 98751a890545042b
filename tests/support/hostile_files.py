"""Good files of every kind that is read, and broken copies of them: cut off anywhere, or with bits flipped."""

import gzip
import io
import json
import random
from typing import Any

import pyarrow as pa
from pyarrow import parquet


def files_of(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """Name -> bytes of a file of these rows, one of every kind."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), table)
    return {
        "rows.jsonl": lines,
        "rows.json": json.dumps(rows).encode(),
        "rows.jsonl.gz": gzip.compress(lines),
        "rows.jsonl.zst": pa.compress(lines, "zstd", asbytes=True),
        "rows.parquet": table.getvalue(),
    }


def broken(data: bytes, chance: random.Random) -> bytes:
    """A copy that is cut off, or has one to three bits flipped."""
    if chance.random() < 0.4:
        return data[: chance.randrange(1, len(data))]
    copy = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        copy[chance.randrange(len(copy))] ^= 1 << chance.randrange(8)
    return bytes(copy)
