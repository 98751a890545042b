"""A wall-clock alarm that restores the previous SIGALRM timer and handler: `Alarm`."""

import signal
import time
from collections.abc import Callable
from typing import Any


class Alarm:
    """Calls `handler` in the main thread after `seconds` of wall-clock time, unless cancelled."""

    def __init__(self, seconds: float, handler: Callable[..., Any]) -> None:
        self.began = time.monotonic()
        self.cancelled = False
        self.handler = signal.signal(signal.SIGALRM, handler)
        self.timer = signal.setitimer(signal.ITIMER_REAL, seconds)

    def cancel(self) -> None:
        """Stop the alarm and restore the previous one with its remaining time. A second call only completes one that was
        interrupted."""
        if self.cancelled:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.handler if self.handler is not None else signal.SIG_DFL)
        left, every = self.timer
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - self.began)), every)
        self.cancelled = True
