"""A background thread that runs jobs in order while the main thread prepares the next ones: `OrderedExecutor`.

Meant for jobs that release the GIL: encoding while a tokenizer is being loaded, and writing. A worker process is planned to
use one core, so a job runs in the calling thread when nothing is ahead of it.
Invariant: results are delivered in the order of the jobs, in the main thread.
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
    """`ahead`: total weight of pending jobs above which `submit` waits for the oldest of them."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[_Waiting] = deque()
        self.load = 0

    def start(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` in the thread, before all jobs that are submitted later."""
        return self.thread.submit(job)

    def submit(self, job: Callable[[], T], then: Callable[[T], None], *, ready: bool, weight: int = 1) -> None:
        """Run `job` and pass its result to `then`, in this or a later call of `submit` or `finish`, which raise what a job
        raised. `ready`: run it in this thread unless other jobs are ahead of it. `weight`: in the unit of `ahead`."""
        while self.waiting and (self.load + weight > self.ahead or self.waiting[0].future.done()):
            self._hand_over()
        if ready and not self.waiting:
            then(job())
        else:
            self.waiting.append(_Waiting(job, then, weight, self.thread.submit(job)))
            self.load += weight

    def finish(self) -> None:
        """Wait for all jobs and deliver their results. Raises what a job raised."""
        while self.waiting:
            self._hand_over()

    def help(self) -> None:
        """Run the jobs that the thread has not started in this thread, the last one first: for jobs whose order does not
        matter."""
        for waiting in reversed(self.waiting):
            if waiting.future.cancel():
                waiting.future = Future()
                waiting.future.set_result(waiting.job())

    def close(self) -> None:
        """End the thread after its current job; pending jobs are cancelled."""
        self.thread.shutdown(wait=True, cancel_futures=True)

    def _hand_over(self) -> None:
        first = self.waiting.popleft()
        self.load -= first.weight
        first.then(first.future.result())
