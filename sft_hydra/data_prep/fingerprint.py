"""Fingerprints of inputs: `fingerprint_inputs` reads each file once; `count_rows` and `line_offsets` derive from that the
number of rows and the byte offsets at which they start.

Invariant: the identity changes with the content. A plain file of lines is read once for all of this; the rows of a
compressed one are counted in a second pass.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sft_hydra.data_prep import spelling
from sft_hydra.data_prep.columns import parquet_file
from sft_hydra.data_prep.contents import BLOCK, Contents
from sft_hydra.data_prep.files import InputFile, open_bytes
from sft_hydra.data_prep.hub_sets import hub_data
from sft_hydra.data_prep.sources import Source, read_rows
from sft_hydra.errors import DataError

THREADS = 4  # files read at once; hashing dominates


@dataclass(frozen=True, slots=True)
class InputFingerprint:
    """`identity`: sha256 of a file's bytes, or a hub data set's fingerprint. `lines[b]`: line ends before block b of a
    plain file of lines, and after the last block. `is_open`: it does not end with a line end. `contents`: of a file."""

    identity: str
    lines: NDArray[np.int64]
    is_open: bool = False
    contents: Contents | None = None


def fingerprint_inputs(inputs: Sequence[tuple[InputFile, Source]]) -> list[InputFingerprint]:
    """The fingerprint of every input, in their order. DataError if one cannot be read, ChangedError if it is written
    meanwhile."""
    with _readers() as (pool, stopped):
        return list(pool.map(lambda pair: _fingerprint(pair[0], pair[1], stopped), inputs))


@contextmanager
def _readers() -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """A thread pool, and an event that is set to stop its threads if the block raises."""
    stopped = Event()
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        try:
            yield pool, stopped
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _InterruptedError(Exception):
    """Ends a thread whose result is no longer needed."""


def _fingerprint(file: InputFile, source: Source, stopped: Event) -> InputFingerprint:
    if file.kind in ("builtin", "demo", "hub"):
        return InputFingerprint(_identity_of_made(file, source), np.zeros(0, np.int64))
    counts, last = [0], [b"\n"]

    def look(block: bytes) -> None:
        if stopped.is_set():
            raise _InterruptedError
        counts.append(block.count(b"\n"))
        last[0] = block[-1:]

    try:
        contents = Contents.read(file.path, look)
    except OSError as problem:
        raise DataError(f"source {source.name}: {file.path}: cannot be read ({problem.strerror})") from None
    return InputFingerprint(contents.sha256, np.cumsum(counts), last[0] != b"\n", contents)


def _identity_of_made(file: InputFile, source: Source) -> str:
    if file.kind == "hub":
        return str(hub_data(file.path, source.config)._fingerprint)
    if file.kind == "builtin":
        return hashlib.sha256(Path(spelling.__file__).read_bytes()).hexdigest()
    from sft_hydra.demo import conversations

    folder = Path(conversations.__file__).parent
    code = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(code).hexdigest()


def count_rows(file: InputFile, source: Source, seen: InputFingerprint) -> int:
    """Number of rows of an input; for JSON lines the number of lines, including blank ones. DataError if it cannot be read."""
    if file.kind == "parquet":
        return int(parquet_file(file).metadata.num_rows)
    if file.kind == "hub":
        return len(hub_data(file.path, source.config))
    if file.kind == "builtin" and file.path.removeprefix("builtin:") in spelling.ROWS:
        return spelling.ROWS[file.path.removeprefix("builtin:")]
    if file.kind in ("array", "demo", "builtin"):
        return sum(1 for _ in read_rows(file, source, 0, None))
    if file.plain:
        return int(seen.lines[-1]) + seen.is_open
    count, last = 0, b"\n"
    with open_bytes(file.path, file.contents) as stream:
        while block := stream.read(BLOCK):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


def line_offsets(file: InputFile, rows: list[int], seen: InputFingerprint) -> list[int]:
    """Byte offset at which each of `rows` (numbers from 0) starts in a plain file of lines; 0 for every other kind of file."""
    if file.kind != "lines" or not file.plain or not any(rows):
        return [0] * len(rows)
    with open_bytes(file.path, file.contents) as stream:
        return [_offset(stream, row, seen.lines) for row in rows]


def _offset(stream: IO[bytes], row: int, lines: NDArray[np.int64]) -> int:
    """Byte offset of the start of `row`: after that many line ends. `lines` as in `InputFingerprint`."""
    if not row:
        return 0
    number = int(np.searchsorted(lines, row)) - 1
    stream.seek(number * BLOCK)
    block = stream.read(BLOCK)
    end = -1
    for _ in range(row - int(lines[number])):
        end = block.index(b"\n", end + 1)
    return number * BLOCK + end + 1
