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
from types import TracebackType
from typing import Any, NoReturn

from sft_hydra.chat.wall_time import Alarm
from sft_hydra.errors import DataError

SECONDS = 20.0  # of processor time; the slowest real conversations take one second
PATIENCE = 1.5  # wall-clock limit over processor-time limit, for a busy machine
BYTES = 4 << 30  # of address space, in addition to what the process has
PREFIX = "the chat template, or its input,"
FRESH = 0.25  # seconds for which kept timers and a kept memory limit are used
BITS = 1 << 16  # maximum size of an integer that a template computes

_active = False
_kept = False  # handlers and timers stay set between conversations (keep_timers)
_set_at = -math.inf  # when the kept timers and memory limit were set
_memory: tuple[int, int] | None = None  # limits to restore after keep_timers


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
            _renew()
            _active = True  # last: a timer that ended before this conversation does not count
        elif self.holds:
            _active = True
            self.handler = signal.signal(signal.SIGVTALRM, _stop)
            self.timer = signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds)
            self.alarm = Alarm(PATIENCE * self.seconds, _stop)
            self.memory = _memory_limit()
            _limit_memory(self.memory)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        if not self.holds:
            return
        if self.kept:
            _active = False
        else:
            self._restore()
        if isinstance(value, MemoryError):
            _expire()
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
    """Make many `limit_resources()` in the block cheap: signal handlers stay installed, timers run on and the memory limit stays
    set between conversations. All are renewed when they are FRESH seconds old, so that a conversation may get that much less
    time, and less memory by what the process has grown since. Without effect outside the main thread, or if a timer of another
    owner runs. The previous handlers and limits are restored."""
    global _kept, _memory
    timers = (signal.ITIMER_VIRTUAL, signal.ITIMER_REAL)
    in_main = threading.current_thread() is threading.main_thread()
    if _kept or _active or not in_main or any(signal.getitimer(timer)[0] for timer in timers):
        yield
        return
    numbers = (signal.SIGVTALRM, signal.SIGALRM)
    before = [signal.signal(number, _stop_active) for number in numbers]
    for number in numbers:
        signal.siginterrupt(number, False)  # a timer that ends between two conversations must not fail a write
    _kept, _memory = True, _memory_limit()
    try:
        yield
    finally:
        _kept = False
        if _memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, _memory)
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        _expire()


def _renew() -> None:
    global _set_at
    now = time.monotonic()
    if now - _set_at > FRESH:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * SECONDS)
        _limit_memory(_memory)
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


def _memory_limit() -> tuple[int, int] | None:
    """The (soft, hard) limits of address space in bytes; None where the system has none."""
    return resource.getrlimit(resource.RLIMIT_AS) if sys.platform == "linux" else None


def _limit_memory(before: tuple[int, int] | None) -> None:
    """Limit the address space to what the process has now and BYTES more. `before`: the limits without that."""
    if before is None:
        return
    with open("/proc/self/statm", "rb") as stream:
        wanted = int(stream.read().split()[0]) * resource.getpagesize() + BYTES
    soft, hard = before
    resource.setrlimit(resource.RLIMIT_AS, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))


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
