"""The wish to stop: a signal is kept until the training loop asks, between two steps; while data is prepared it stops that at
once. Torch-free.

SIGTERM comes from scancel, preemption and supervisors, SIGUSR2 from the batch script ahead of a time limit (SIGUSR1 belongs
to NCCL). SIGINT (Ctrl-C) is kept only while training, and only once: a second one interrupts at once.
Outside `listening()` this process's signals are as they were, and nothing is remembered from one run to the next.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

KINDS = (signal.SIGTERM, signal.SIGUSR2)

STOPPED = "stopped by a signal; the same command goes on with what was prepared"

_asked = False
_at_once = False


class StoppedError(BaseException):
    """A run ended at a signal before its time, its checkpoint saved; the same command goes on. Like KeyboardInterrupt, nothing
    that handles errors takes it for one."""


def stop_requested() -> bool:
    """Whether this process got a signal to stop."""
    return _asked


def install_handlers() -> None:
    """Keep SIGTERM and SIGUSR2 from now on. Main thread only."""
    for kind in KINDS:
        signal.signal(kind, _keep)
    _free_children()


@contextmanager
def listening() -> Iterator[None]:
    """Keep SIGTERM and SIGUSR2 in the body; afterwards they are what they were before, and no wish is left. In a thread other
    than the first, which gets no signals, nothing is kept."""
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.getsignal(kind) for kind in KINDS}
    _asked = False
    install_handlers()
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler if handler is not None else signal.SIG_DFL)
        _asked = False


@contextmanager
def at_once() -> Iterator[None]:
    """A signal that is kept, in the body or since before it, ends the body with StoppedError: for work that nobody asks
    between steps, and that goes on from what it has written."""
    global _at_once
    before, _at_once = _at_once, True
    try:
        if _asked:
            raise StoppedError(STOPPED)
        yield
    finally:
        _at_once = before


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
    if _at_once:
        raise StoppedError(STOPPED)


def _keep_once(number: int, frame: FrameType | None) -> None:
    _keep(number, frame)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def _free_children() -> None:
    """Helper processes that are forked must die of SIGTERM. Once in a process."""
    os.register_at_fork(after_in_child=_unlisten)


def _unlisten() -> None:
    for kind in KINDS:
        if signal.getsignal(kind) is _keep:
            signal.signal(kind, signal.SIG_DFL)
