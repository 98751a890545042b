"""File locks: which process may write a folder, for as long as it lives.

A lock belongs to an open file, so that a killed process releases it, and child processes hold it only if they inherit the
file. On a file system without locks, every attempt succeeds.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EAGAIN
from pathlib import Path


class BusyError(Exception):
    """Another process holds the lock."""


class Lock:
    """An open file that can be locked. OSError if it can be neither opened nor created."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Close the file, which releases the lock."""
        os.close(self.descriptor)

    def try_exclusive(self) -> bool:
        """Try to lock it exclusively; false if another process holds any lock on it."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Try to lock it shared; false if another process holds it exclusively."""
        return self._try(fcntl.LOCK_SH)

    def release(self) -> None:
        """Release the lock; the file stays open."""
        self._try(fcntl.LOCK_UN)

    def read(self) -> str:
        """The text that its holder has written to the file."""
        return os.pread(self.descriptor, 1 << 16, 0).decode("utf-8", "replace")

    def write(self, text: str) -> None:
        """Write a text for processes that find it locked."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text.encode(), 0)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except OSError as problem:
            return problem.errno not in (EAGAIN, EACCES)  # otherwise the file system has no locks
        return True


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[Lock]:
    """Context that holds the lock on this file, created if missing. BusyError if another process holds it."""
    lock = Lock(path)
    try:
        if not (lock.try_shared() if shared else lock.try_exclusive()):
            raise BusyError(str(path))
        yield lock
    finally:
        lock.close()
