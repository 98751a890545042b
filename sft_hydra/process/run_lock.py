"""Lock that allows one training at a time in a run's folder.

Owner of: a run's folder has one writer.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from sft_hydra.errors import ConfigError
from sft_hydra.paths import RunPaths


@contextmanager
def run_lock(paths: RunPaths) -> Iterator[None]:
    """Lock the run's log file (flock, released when the process ends). ConfigError if another training holds the lock."""
    paths.root.mkdir(parents=True, exist_ok=True)
    with paths.log.open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{paths.root}: another training is running in this folder; wait for it, stop it, or choose another name=..."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
