"""Stop signals: recorded by handlers, checked by the training loop between two steps. Torch-free.

SIGTERM comes from scancel, preemption and supervisors, SIGUSR2 from the batch script before a time limit (SIGUSR1 is used by
NCCL). SIGINT (Ctrl-C) is recorded only during training, and only once: a second one interrupts immediately.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_requested = False


class StoppedError(Exception):
    """A run stopped early because of a signal, after saving a checkpoint; rerun the same command to resume."""


def stop_requested() -> bool:
    """Whether this process received a stop signal."""
    return _requested


def install_handlers() -> None:
    """Record SIGTERM and SIGUSR2 instead of ending the process. Main thread only."""
    for kind in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(kind, _record)
    os.register_at_fork(after_in_child=_restore_default)  # SIGTERM must end helper processes


@contextmanager
def finish_step_on_interrupt() -> Iterator[None]:
    """Record the first SIGINT within the body as well, so that the current step is finished."""
    before = signal.signal(signal.SIGINT, _record_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _record(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = True


def _record_once(number: int, frame: FrameType | None) -> None:
    _record(number, frame)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _restore_default() -> None:
    for kind in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(kind, signal.SIG_DFL)
