"""The wish to stop: a signal is kept until the training loop asks, between two steps. Torch-free.

SIGTERM comes from scancel, preemption and supervisors, SIGUSR2 from the batch script ahead of a time limit (SIGUSR1 belongs
to NCCL). SIGINT (Ctrl-C) is kept only while training, and only once: a second one interrupts at once.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = False


class StoppedError(Exception):
    """A run ended at a signal before its time, its checkpoint saved; the same command goes on."""


def stop_requested() -> bool:
    """Whether this process got a signal to stop."""
    return _asked


def install_handlers() -> None:
    """Keep SIGTERM and SIGUSR2 from now on. Main thread only."""
    for kind in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(kind, _keep)
    os.register_at_fork(after_in_child=_unlisten)  # helper processes must die of SIGTERM


@contextmanager
def finish_step_on_interrupt() -> Iterator[None]:
    """Keep the first SIGINT in the body, too."""
    before = signal.signal(signal.SIGINT, _keep_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _keep(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True


def _keep_once(number: int, frame: FrameType | None) -> None:
    _keep(number, frame)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _unlisten() -> None:
    for kind in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(kind, signal.SIG_DFL)
