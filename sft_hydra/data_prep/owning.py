"""Locks on the folder of a packed set: `may_prepare(folder, key, owner)` to make it, `in_use(folder)` to train on it,
`working_in(partial)` for machines that each tokenize a part.

Invariant: the folder of a set, and the `.partial` folder beside it, are written only under a lock. Several preparations of
the same set wait for each other; preparing another set in the same folder meanwhile is a DataError.

Owner of: a packed set's folder has one writer.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_hydra.errors import DataError
from sft_hydra.files import unwritable
from sft_hydra.locks import BusyError, Lock, locked

POLL_SECONDS = 0.1
WAYS_OUT = "wait until it has finished, or set another data.packed_dir"


@contextmanager
def may_prepare(folder: Path, key: str, owner: str) -> Iterator[None]:
    """Hold the exclusive lock on a set's folder, after waiting for other preparations of the same set. `key`: content key of
    the set to be made, `owner`: name of the run, for messages. DataError if another set is being prepared there, the set
    there is in use, or the folder cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(_lock_file(folder))
    except OSError as problem:
        raise DataError(f"{folder.parent}: cannot be written {unwritable(problem)}") from None
    try:
        refused = 0
        while not lock.try_exclusive():
            if lock.try_shared():
                lock.release()
                raise DataError(
                    f"{folder}: a run is training on the packed set there, so it cannot be replaced; {WAYS_OUT}"
                )
            there = _read(lock)
            refused = refused + 1 if there.get("key") not in (None, key) else 0
            if refused > 1:  # read twice: the holder may just be writing it
                raise DataError(f"{folder}: {there.get('owner')} is preparing a different packed set there; {WAYS_OUT}")
            time.sleep(POLL_SECONDS)
        lock.write(json.dumps({"key": key, "owner": owner}))
        yield
    finally:
        lock.close()


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold the shared lock on a set's folder, so that it is not replaced while a run trains on it. DataError if it is being
    prepared."""
    try:
        lock = Lock(_lock_file(folder))
    except OSError:  # a read-only place: the set cannot be replaced
        yield
        return
    try:
        if not lock.try_shared():
            raise DataError(
                f"{folder}: {_read(lock).get('owner', 'another command')} is preparing this packed set; wait until it has finished"
            )
        yield
    finally:
        lock.close()


@contextmanager
def working_in(partial: Path) -> Iterator[None]:
    """Hold the shared lock on a `.partial` folder, so that it is not deleted while a machine tokenizes its part in it."""
    with locked(partial / "lock", shared=True):
        yield


def throw_away(partial: Path) -> None:
    """Delete the unfinished work in a `.partial` folder. DataError if another machine is tokenizing there."""
    if not partial.exists():
        return
    try:
        with locked(partial / "lock"):
            shutil.rmtree(partial)
    except BusyError:
        raise DataError(
            f"{partial}: other machines are tokenizing parts of a different packed set there; {WAYS_OUT}"
        ) from None


def remove_leftover(folder: Path, partial: Path) -> None:
    """Delete the `.partial` folder beside a finished set: a preparation that was killed after publishing the set left it.
    It stays where the place is read-only or another command holds a lock there."""
    if not partial.exists():
        return
    try:
        lock = Lock(_lock_file(folder))
    except OSError:
        return
    try:
        if lock.try_exclusive():
            throw_away(partial)
    except (DataError, OSError):
        return
    finally:
        lock.close()


def _lock_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _read(lock: Lock) -> dict[str, str]:
    try:
        return dict(json.loads(lock.read()))
    except (ValueError, TypeError):
        return {}
