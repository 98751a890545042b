"""Checksums of input files: `Contents.read` computes them once, `CheckedFile` verifies every block that is read later.

Invariant: bytes read through CheckedFile are those that the checksum was computed from, even if the file is written in the
meantime; otherwise ChangedError.

Owner of: what is prepared are the bytes that the content key was made of.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sft_hydra.chat.file_hash import stamp_of
from sft_hydra.errors import DataError

BLOCK = 1 << 20  # bytes


class ChangedError(DataError):
    """An input changed after its preparation began."""

    def __init__(self, path: str, how: str) -> None:
        super().__init__(
            f"{path}: changed during data preparation ({how}); rerun the command to prepare the current contents"
        )


@dataclass(frozen=True, slots=True)
class Contents:
    """Checksums of a file: `sha256` (hex) of its bytes, `size` in bytes, `blocks` the CRC-32 of each BLOCK, and `stamp` (device,
    inode, size, mtime, ctime) to detect an unmodified file without reading it."""

    sha256: str
    size: int
    blocks: NDArray[np.uint32] = field(compare=False)
    stamp: tuple[int, ...] = field(compare=False)

    @classmethod
    def read(cls, path: str, look: Callable[[bytes], None] = lambda _: None) -> "Contents":
        """Read a file once and call `look` with every block. OSError if it cannot be read, ChangedError if it is written
        meanwhile."""
        digest, blocks, size = hashlib.sha256(), [], 0
        with open(path, "rb", buffering=0) as stream:
            before = stamp_of(os.fstat(stream.fileno()))
            while block := _read_block(stream.fileno(), size, BLOCK):
                digest.update(block)
                blocks.append(zlib.crc32(block))
                size += len(block)
                look(block)
            if stamp_of(os.fstat(stream.fileno())) != before:
                raise ChangedError(path, "written while its checksum was computed")
        return cls(digest.hexdigest(), size, np.array(blocks, np.uint32), before)

    def check(self, path: str) -> None:
        """ChangedError unless the file at this path has these contents. The bytes are read only if the stamp differs."""
        try:
            if stamp_of(os.stat(path)) == self.stamp:
                return
            now = Contents.read(path)
        except OSError as problem:
            raise ChangedError(path, str(problem.strerror)) from None
        if now.sha256 != self.sha256:
            raise ChangedError(
                path,
                f"it had {self.size:,} bytes with sha256 {self.sha256[:12]}, now {now.size:,} with {now.sha256[:12]}",
            )


class CheckedFile(io.RawIOBase):
    """A file whose blocks are verified against their checksums as they are read. OSError if it cannot be opened, ChangedError if
    a block differs."""

    def __init__(self, path: str, contents: Contents) -> None:
        self.path, self.contents = path, contents
        self.position = 0
        self.number, self.block = -1, b""
        self.descriptor = -1  # close() also runs if opening failed
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.contents.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        if self.position >= self.contents.size:
            return 0
        number, start = divmod(self.position, BLOCK)
        if number != self.number:
            self.block, self.number = self._read(number), number
        part = self.block[start : start + len(buffer)]
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        super().close()

    def _read(self, number: int) -> bytes:
        size = min(BLOCK, self.contents.size - number * BLOCK)
        block = _read_block(self.descriptor, number * BLOCK, size)
        if len(block) < size:
            raise ChangedError(self.path, f"it ends at byte {number * BLOCK + len(block):,} of {self.contents.size:,}")
        if zlib.crc32(block) != self.contents.blocks[number]:
            raise ChangedError(self.path, f"its bytes differ from byte {number * BLOCK:,} on")
        return block


def open_known(path: str, contents: Contents | None) -> IO[bytes]:
    """A file opened for reading bytes, verified against `contents` unless None. OSError if it cannot be opened."""
    if contents is None:
        return open(path, "rb", buffering=BLOCK)
    return io.BufferedReader(CheckedFile(path, contents), BLOCK)


def _read_block(descriptor: int, offset: int, size: int) -> bytes:
    """`size` bytes, fewer only at the end of the file."""
    parts = []
    while size and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
