"""Time and memory that one conversation may cost: `limit_resources()` around what strangers wrote, and `power` and `times` for
numbers in templates, which no signal interrupts.

Outside `limit_resources()` the process has its own signal handler, timer and limits again.
Invariant: a template or tool schema that loops or grows without end is a LimitError after seconds, in a process that
goes on. The sandbox says what a template may touch, this says how much it may take.
"""

import resource
import signal
import sys
import threading
import time
from functools import lru_cache
from types import TracebackType
from typing import Any, NoReturn

from sft_hydra.chat.wall_time import Alarm
from sft_hydra.errors import DataError

SECONDS = 20.0  # of this process's own work; the slowest honest conversations take a second
PATIENCE = 1.5  # times as long by the clock, which also counts what the system does for it, on a machine that is busy
BYTES = 4 << 30  # more than the process had
PREFIX = "the chat template, or what it is given,"
FRESH = 0.25  # seconds for which a process's size is taken to be what it was
BITS = 1 << 16  # of an integer that a template computes

_active = False


class LimitError(DataError):
    """Something took too long, or too much memory."""


class limit_resources:  # noqa: N801 (a context manager, called like those of contextlib)
    """Raises LimitError when what is inside works for more than `seconds` (SECONDS), takes PATIENCE times as long by the
    clock, or more memory than BYTES.
    In threads other than the first nothing is limited, because signals reach only that one; inside another `limited`
    that one holds."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = SECONDS if seconds is None else seconds

    def __enter__(self) -> None:
        global _active
        self.holds = not _active and threading.current_thread() is threading.main_thread()
        if self.holds:
            _active = True
            self.handler = signal.signal(signal.SIGVTALRM, _stop)
            self.timer = signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds)
            self.alarm = Alarm(PATIENCE * self.seconds, _stop)
            self.memory = _limit_memory()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        if not self.holds:
            return
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            self.alarm.cancel()
        finally:  # a signal may come in this very moment
            self.alarm.cancel()
            signal.signal(signal.SIGVTALRM, self.handler if self.handler is not None else signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_VIRTUAL, *self.timer)  # another's, if this process has one
            if self.memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, self.memory)
            _active = False
        if isinstance(value, MemoryError):
            raise LimitError(f"{PREFIX} takes more than {BYTES >> 30} GiB of memory") from None


def _stop(*_: Any) -> NoReturn:
    raise LimitError(f"{PREFIX} works for too long")


def _limit_memory() -> tuple[int, int] | None:
    """The limits that were in force; None where the system has no such limit."""
    if sys.platform != "linux":
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _size(int(time.monotonic() / FRESH)) + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))
    return soft, hard


@lru_cache(maxsize=1)
def _size(moment: int) -> int:
    """Bytes of address space of this process at about that moment: to ask takes longer than most conversations."""
    with open("/proc/self/statm", "rb") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize()


def power(base: Any, exponent: Any) -> Any:
    """`base ** exponent`, which no signal interrupts, unless it is too large."""
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > BITS:
        raise LimitError(f"{PREFIX} computes a number of too many digits")
    return base**exponent


def times(left: Any, right: Any) -> Any:
    """`left * right`, unless it is a number of too many digits."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > BITS:
        raise LimitError(f"{PREFIX} computes a number of too many digits")
    return left * right
