"""SHA-256 of files that one process reads several times: `file_sha256(path)`.

A file is hashed again only if its stamp (`stamp_of`) differs, or if it was written less than RECENT seconds ago, when a further
change might leave the stamp as it is.
"""

import hashlib
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

RECENT = 2.0  # seconds; more than the resolution of time stamps of common file systems


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Device, inode, size, mtime and ctime of a file, which differ if it was replaced or written."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_sha256(path: Path) -> Any:
    """The hashlib object of a file's bytes, which may be updated. OSError if it cannot be read."""
    status = os.stat(path)
    if abs(time.time() - status.st_ctime) < RECENT:
        return hashlib.sha256(path.read_bytes())
    return _hashed(path, stamp_of(status)).copy()


@lru_cache(maxsize=8)
def _hashed(path: Path, stamp: tuple[int, ...]) -> Any:
    return hashlib.sha256(path.read_bytes())
