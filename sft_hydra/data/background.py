"""A thread that works off jobs in their order while the main thread prepares the next ones: `Background`.

It is for the start, when a tokenizer is still being read: a worker is one core's work, so later jobs are done on the spot.
Invariant: jobs are done and handed over in their order; results are handed over in the main thread.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """`ahead`: jobs that may wait before `submit` waits for the oldest of them."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()

    def start(self, job: Callable[[], T]) -> Future[T]:
        """Do `job` before all that is submitted later."""
        return self.thread.submit(job)

    def submit(self, job: Callable[[], T], then: Callable[[T], None], *, ready: bool) -> None:
        """Do `job`, and give what it returns to `then` in this or a later call of `submit` or `finish`, which raise what
        a job raised. `ready`: nothing has to be waited for, do it here unless others are before it."""
        while self.waiting and (len(self.waiting) >= self.ahead or self.waiting[0][0].done()):
            self._hand_over()
        if ready and not self.waiting:
            then(job())
        else:
            self.waiting.append((self.thread.submit(job), then))

    def finish(self) -> None:
        """Wait for all jobs."""
        while self.waiting:
            self._hand_over()

    def close(self) -> None:
        """Let the thread end, when it has done what was submitted."""
        self.thread.shutdown(wait=True)

    def _hand_over(self) -> None:
        future, then = self.waiting.popleft()
        then(future.result())
