"""A thread that works off jobs in their order while the main thread prepares the next ones: `OrderedExecutor`.

It is for what does without Python: encoding while a tokenizer is still being read, and writing. A worker is one core's work,
so jobs are done on the spot when they can be.
Invariant: results are handed over in the order of the jobs, and in the main thread.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Waiting:
    job: Callable[[], Any]
    then: Callable[[Any], None]
    weight: int
    future: Future[Any]


class OrderedExecutor:
    """`ahead`: how much may wait, as weights of jobs, before `submit` waits for the oldest of them."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[_Waiting] = deque()
        self.load = 0

    def start(self, job: Callable[[], T]) -> Future[T]:
        """Do `job` before all that is submitted later."""
        return self.thread.submit(job)

    def submit(self, job: Callable[[], T], then: Callable[[T], None], *, ready: bool, weight: int = 1) -> None:
        """Do `job`, and give what it returns to `then` in this or a later call of `submit` or `finish`, which raise what
        a job raised. `ready`: nothing has to be waited for, do it here unless others are before it."""
        while self.waiting and (self.load + weight > self.ahead or self.waiting[0].future.done()):
            self._hand_over()
        if ready and not self.waiting:
            then(job())
        else:
            self.waiting.append(_Waiting(job, then, weight, self.thread.submit(job)))
            self.load += weight

    def finish(self) -> None:
        """Wait for all jobs."""
        while self.waiting:
            self._hand_over()

    def help(self) -> None:
        """Do here, from the last on, the jobs that the thread has not begun: for jobs whose order does not matter."""
        for waiting in reversed(self.waiting):
            if waiting.future.cancel():
                waiting.future = Future()
                waiting.future.set_result(waiting.job())

    def close(self) -> None:
        """Let the thread end, after the job that it is at: what nobody has waited for is not wanted any more."""
        self.thread.shutdown(wait=True, cancel_futures=True)

    def _hand_over(self) -> None:
        first = self.waiting.popleft()
        self.load -= first.weight
        first.then(first.future.result())
