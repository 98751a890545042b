"""Who may write a packed set: `may_prepare(folder, key, owner)` for those who make it, `in_use(folder)` for those who train on
it, `working_in(partial)` for machines that tokenize a share each.

Invariant: nothing in a set's folder, or in the one beside it where work goes on, is written or removed before it is owned.
Several preparations of the same set wait for each other; of another set in the same folder, the second is refused.

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
WAYS_OUT = "wait until it is done, or choose another data.packed_dir"


@contextmanager
def may_prepare(folder: Path, key: str, owner: str) -> Iterator[None]:
    """Holds the lock on a set's folder, as soon as nobody else makes this set. `key`: the content key of the set that is to
    be made, `owner`: by which run. DataError if another set is being made there, or one there is in use."""
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
                    f"{folder}: in use by a run that trains on it, so no other set can be put there; {WAYS_OUT}"
                )
            there = _read(lock)
            refused = refused + 1 if there.get("key") not in (None, key) else 0
            if refused > 1:  # what a holder has just begun to write is not believed at once
                raise DataError(f"{folder}: {there.get('owner')} is preparing another set there; {WAYS_OUT}")
            time.sleep(POLL_SECONDS)
        lock.write(json.dumps({"key": key, "owner": owner}))
        yield
    finally:
        lock.close()


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """While a run trains on the set in this folder, no preparation puts another there. DataError if one is at it."""
    try:
        lock = Lock(_lock_file(folder))
    except OSError:  # a place where nobody can write: nobody can put another there
        yield
        return
    try:
        if not lock.try_shared():
            raise DataError(
                f"{folder}: {_read(lock).get('owner', 'another command')} is preparing it again; wait until it is done"
            )
        yield
    finally:
        lock.close()


@contextmanager
def working_in(partial: Path) -> Iterator[None]:
    """While a machine tokenizes its share in this folder, nobody throws it away."""
    with locked(partial / "lock", shared=True):
        yield


def throw_away(partial: Path) -> None:
    """Remove unfinished work. DataError if somebody is at it."""
    if not partial.exists():
        return
    try:
        with locked(partial / "lock"):
            shutil.rmtree(partial)
    except BusyError:
        raise DataError(f"{partial}: other machines tokenize parts of another set there; {WAYS_OUT}") from None


def _lock_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _read(lock: Lock) -> dict[str, str]:
    try:
        return dict(json.loads(lock.read()))
    except (ValueError, TypeError):
        return {}
