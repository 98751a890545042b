"""Locks on files: who may write a folder, for as long as its process lives.

A lock belongs to an open file, so a killed process lets go by itself, and no process that it starts holds it unless the file
is handed over. On a file system without locks everybody gets them.
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
    """An open file that can be locked. OSError if it can be neither opened nor made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        os.close(self.descriptor)

    def try_exclusive(self) -> bool:
        """Whether nobody else has it, in any way."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Whether nobody has it exclusively."""
        return self._try(fcntl.LOCK_SH)

    def release(self) -> None:
        self._try(fcntl.LOCK_UN)

    def read(self) -> str:
        """What its holder has written into it."""
        return os.pread(self.descriptor, 1 << 16, 0).decode("utf-8", "replace")

    def write(self, text: str) -> None:
        """For those who come while it is held."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text.encode(), 0)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except OSError as problem:
            return problem.errno not in (EAGAIN, EACCES)  # else the file system has no locks
        return True


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[Lock]:
    """Holds the lock on this file, which is made if it is not there. BusyError if another process has it."""
    lock = Lock(path)
    try:
        if not (lock.try_shared() if shared else lock.try_exclusive()):
            raise BusyError(str(path))
        yield lock
    finally:
        lock.close()
