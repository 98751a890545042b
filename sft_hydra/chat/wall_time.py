"""An alarm by the clock that leaves the alarm of the program around it as it was."""

import signal
import time
from collections.abc import Callable
from typing import Any


class Alarm:
    """Calls `handler` in the first thread after `seconds`, unless it is cancelled before."""

    def __init__(self, seconds: float, handler: Callable[..., Any]) -> None:
        self.began = time.monotonic()
        self.handler = signal.signal(signal.SIGALRM, handler)
        self.timer = signal.setitimer(signal.ITIMER_REAL, seconds)

    def cancel(self) -> None:
        """Also sets what was set before for the time that is left of it."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.handler if self.handler is not None else signal.SIG_DFL)
        left, every = self.timer
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - self.began)), every)
