"""Time and memory limits for one conversation: `limit_resources()` around untrusted templates and data; `power` and `times`
limit integer arithmetic in templates, which signals cannot interrupt.

After `limit_resources()` the previous signal handlers, timers and limits are restored.
Invariant: a template or tool schema that loops or grows without end raises LimitError after SECONDS, and the process
continues. The sandbox (jinja_env.py) limits what a template can access; this module limits what it can use.
"""

import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, NoReturn

from sft_hydra.chat.wall_time import Alarm
from sft_hydra.errors import DataError

SECONDS = 20.0  # of processor time; the slowest real conversations take one second
PATIENCE = 1.5  # wall-clock limit over processor-time limit, for a busy machine
BYTES = 4 << 30  # of address space, in addition to what the process has
PREFIX = "the chat template, or its input,"
FRESH = 0.25  # seconds for which a measured process size, and kept timers, are reused
BITS = 1 << 16  # maximum size of an integer that a template computes

_active = False
_kept = False  # handlers and timers stay set between conversations (keep_timers)
_set_at = -math.inf  # when the kept timers were set


class LimitError(DataError):
    """A conversation exceeded the time, memory or integer limit."""


class limit_resources:  # noqa: N801 (a context manager, called like those of contextlib)
    """Raises LimitError if the body uses more than `seconds` (default SECONDS) of processor time, PATIENCE times that of
    wall-clock time, or BYTES of additional memory.
    Only the main thread is limited, because only it receives signals; a nested context has no effect."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = SECONDS if seconds is None else seconds

    def __enter__(self) -> None:
        global _active
        self.holds = not _active and threading.current_thread() is threading.main_thread()
        self.kept = self.holds and _kept and self.seconds == SECONDS
        if self.kept:
            _renew_timers()
            self.memory = _limit_memory()
            _active = True  # last: a timer that ended before this conversation does not count
        elif self.holds:
            _active = True
            self.handler = signal.signal(signal.SIGVTALRM, _stop)
            self.timer = signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds)
            self.alarm = Alarm(PATIENCE * self.seconds, _stop)
            _size.cache_clear()  # other threads may have loaded a tokenizer meanwhile
            self.memory = _limit_memory()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        if not self.holds:
            return
        if self.kept:
            _active = False
            if self.memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, self.memory)
        else:
            self._restore()
        if isinstance(value, MemoryError):
            _size.cache_clear()
            raise LimitError(f"{PREFIX} uses more than {BYTES >> 30} GiB of memory") from None

    def _restore(self) -> None:
        global _active
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            self.alarm.cancel()
        finally:  # a signal may arrive during the clean-up
            self.alarm.cancel()
            signal.signal(signal.SIGVTALRM, self.handler if self.handler is not None else signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_VIRTUAL, *self.timer)  # the timer that was set before, if any
            if self.memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, self.memory)
            _active = False


@contextmanager
def keep_timers() -> Iterator[None]:
    """Make many `limit_resources()` in the block cheap: signal handlers stay installed and timers run on, renewed when they
    are FRESH seconds old, so that a conversation may get that much less. Without effect outside the main thread, or if a
    timer of another owner runs. The previous handlers are restored."""
    global _kept
    timers = (signal.ITIMER_VIRTUAL, signal.ITIMER_REAL)
    in_main = threading.current_thread() is threading.main_thread()
    if _kept or _active or not in_main or any(signal.getitimer(timer)[0] for timer in timers):
        yield
        return
    numbers = (signal.SIGVTALRM, signal.SIGALRM)
    before = [signal.signal(number, _stop_active) for number in numbers]
    for number in numbers:
        signal.siginterrupt(number, False)  # a timer that ends between two conversations must not fail a write
    _kept = True
    try:
        yield
    finally:
        _kept = False
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        _expire()


def _renew_timers() -> None:
    global _set_at
    now = time.monotonic()
    if now - _set_at > FRESH:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * SECONDS)
        _set_at = now


def _expire() -> None:
    global _set_at
    _set_at = -math.inf


def _stop_active(*_: Any) -> None:
    """A kept timer may end between two conversations; then the next one renews it."""
    _expire()
    if _active:
        raise LimitError(f"{PREFIX} takes too long")


def _stop(*_: Any) -> NoReturn:
    raise LimitError(f"{PREFIX} takes too long")


def _limit_memory() -> tuple[int, int] | None:
    """Set the memory limit and return the previous (soft, hard) limits in bytes; None where the system has none."""
    if sys.platform != "linux":
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _size(int(time.monotonic() / FRESH)) + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))
    return soft, hard


@lru_cache(maxsize=1)
def _size(moment: int) -> int:
    """Bytes of address space of this process at about that moment. Cached, because reading it is slower than most renders."""
    with open("/proc/self/statm", "rb") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize()


def power(base: Any, exponent: Any) -> Any:
    """`base ** exponent`. Raises LimitError for integers of more than BITS bits."""
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > BITS:
        raise LimitError(f"{PREFIX} computes an integer of more than {BITS:,} bits")
    return base**exponent


def times(left: Any, right: Any) -> Any:
    """`left * right`. Raises LimitError for integers of more than BITS bits."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > BITS:
        raise LimitError(f"{PREFIX} computes an integer of more than {BITS:,} bits")
    return left * right
