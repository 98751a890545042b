"""Signals to stop: remembered until the training loop checks between two steps; data preparation is stopped immediately.
Torch-free.

SIGTERM comes from scancel, preemption and supervisors, SIGUSR2 from the batch script ahead of a time limit (SIGUSR1 belongs
to NCCL). SIGINT (Ctrl-C) is kept only while training, and only once: a second one interrupts at once.
Outside `listening()` the handlers of this process are unchanged, and nothing is remembered from one run to the next.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

KINDS = (signal.SIGTERM, signal.SIGUSR2)

STOPPED = "stopped by a signal; rerun the same command to continue with what was prepared"

_requested = False
_at_once = False


class StoppedError(BaseException):
    """A signal ended the run early, with its checkpoint saved; rerunning the command resumes. A BaseException, like
    KeyboardInterrupt, so that `except Exception` does not catch it."""


def stop_requested() -> bool:
    """Whether this process got a signal to stop."""
    return _requested


def install_handlers() -> None:
    """Keep SIGTERM and SIGUSR2 from now on. Main thread only."""
    for kind in KINDS:
        signal.signal(kind, _keep)
    _free_children()


@contextmanager
def listening() -> Iterator[None]:
    """Keep SIGTERM and SIGUSR2 in the body; afterwards the previous handlers are restored and the request is cleared. Does
    nothing outside the main thread, which alone receives signals."""
    global _requested
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.getsignal(kind) for kind in KINDS}
    _requested = False
    install_handlers()
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler if handler is not None else signal.SIG_DFL)
        _requested = False


@contextmanager
def at_once() -> Iterator[None]:
    """A signal to stop, during the body or before it, ends the body with StoppedError: for work that is not divided into steps
    and that can continue from what it has written."""
    global _at_once
    before, _at_once = _at_once, True
    try:
        if _requested:
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
    global _requested
    _requested = True
    if _at_once:
        raise StoppedError(STOPPED)


def _keep_once(number: int, frame: FrameType | None) -> None:
    _keep(number, frame)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def _free_children() -> None:
    """Restore the default handlers in forked helper processes, so that SIGTERM ends them. Once in a process."""
    os.register_at_fork(after_in_child=_unlisten)


def _unlisten() -> None:
    for kind in KINDS:
        if signal.getsignal(kind) is _keep:
            signal.signal(kind, signal.SIG_DFL)
