"""The worker processes of a preparation, for tokenizing and packing: this process, and helper processes if more are used.

Each takes the next shard from a shared counter, so that a slow or late helper does not hold up the others.
Invariant: a shard's content does not depend on which process does it, and helpers end with this process. Helpers are spawned,
because forking a process with threads (tokenizers, torch) can deadlock.
"""

import gc
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from sft_hydra.chat.resource_limits import keep_timers
from sft_hydra.data_prep.pack_shard import ShardPacker
from sft_hydra.data_prep.plan import Plan, ShardPlan
from sft_hydra.data_prep.tokenize_shard import Done, Report, ShardTokenizer
from sft_hydra.errors import DataError
from sft_hydra.process import signals
from sft_hydra.process.lifeline import Lifeline, end_with_parent

Take = Callable[[], int]  # index of the next shard in the list


class WorkerPool:
    """Tokenizes and packs the shards of a plan; a context manager. `library`: the tokenizer library, once it is chosen.
    `workers`: number of processes, this one included. `report`: called with the counts of each batch."""

    def __init__(self, plan: Plan, library: Future[str], workers: int, report: Report) -> None:
        self.plan = plan
        self.library = library
        self.helpers = workers - 1
        self.report = report
        self.pool: ProcessPoolExecutor | None = None
        self.futures: list[Future[Any]] = []

    def __enter__(self) -> "WorkerPool":
        if self.helpers:
            context = multiprocessing.get_context("spawn")
            self.reports = context.SimpleQueue()
            self.chosen = context.SimpleQueue()
            self.taken = context.Value("q", 0)
            self.lifeline = Lifeline()
            state = (self.plan, self.taken, self.reports, self.chosen, self.lifeline.end)
            self.pool = ProcessPoolExecutor(self.helpers, context, _start_helper, state)
            self.library.add_done_callback(self._announce)
        return self

    def _announce(self, library: Future[str]) -> None:
        """Send the library to every helper; an arbitrary one if the choice failed, so that they end."""
        for _ in range(self.helpers):
            self.chosen.put("tokenizers" if library.exception() else library.result())

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            if kind is not None:  # an error or a stop: finished token stores stay, the rest is cancelled
                self.lifeline.cut()
                self.pool.shutdown(wait=True, cancel_futures=True)
                return
            while wait(self.futures, timeout=0.05).not_done:
                while not self.reports.empty():  # a helper that cannot report does not end
                    self.reports.get()
            self.pool.shutdown(wait=True)
            self.lifeline.cut()

    def tokenize(self, shards: list[ShardPlan], partial: Path, done: Done) -> None:
        """Write the token stores of these shards below `partial`; `done` is called after each. DataError if an input is invalid or
        a helper was killed."""
        if not shards:
            return
        wanted = {shard.number for shard in shards}
        numbers = [shard.number for shard in self.plan.by_size if shard.number in wanted]
        take = self._share(done, _tokenize, numbers, partial)  # first: helpers take a while to start
        worker = ShardTokenizer(self.plan, self.library.result, alone=not self.helpers)
        try:
            _tokenize_shards(worker, numbers, partial, take, self._report_counts, done)
            self._wait()
        finally:
            worker.close()

    def pack(self, splits: list[Any], partial: Path, target: Path, done: Done) -> list[Any]:
        """Write the Parquet shards into `target`. `splits`: for each shard the split of each row. Returns the metadata entries
        in the order of the plan."""
        numbers = [shard.number for shard in self.plan.by_size]
        take = self._share(done, _pack, numbers, splits, partial, target)
        results = _pack_shards(self.plan, numbers, splits, partial, target, take, done)
        for found in self._wait():
            results.update(found)
        return [entry for number in sorted(results) for entry in results[number]]

    def _share(self, done: Done, work: Callable[..., Any], *arguments: Any) -> Take:
        """Start `work` in the helpers; returns the function from which this process takes its shards."""
        self.done = done
        if self.pool is None:
            return count().__next__
        self.taken.value = 0
        self.futures = [self.pool.submit(work, *arguments) for _ in range(self.helpers)]
        return self._take

    def _take(self) -> int:
        self._look_after()
        return _next(self.taken)

    def _report_counts(self, *more: int) -> None:
        self.report(*more)
        self._look_after()

    def _look_after(self) -> None:
        """Forward the reports of the helpers. Raises what one of them raised."""
        while self.futures and not self.reports.empty():
            more = self.reports.get()
            if more:
                self.report(*more)
            else:
                self.done()
        for future in self.futures:
            if future.done():
                _result(future)

    def _wait(self) -> list[Any]:
        """Wait for the helpers; their results."""
        pending = set(self.futures)
        while pending:
            pending = wait(pending, timeout=0.05).not_done
            self._look_after()
        results = [_result(future) for future in self.futures]
        self.futures = []
        return results


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        if signals.stop_requested():  # a signal to the whole process group
            raise signals.StoppedError("stopped by a signal") from None
        raise DataError(
            "a worker process of the data preparation was killed, most likely because memory ran out. Lower data.num_workers and "
            "rerun the command; finished shards are reused"
        ) from None


def spool_folder(partial: Path, plan: Plan, number: int) -> Path:
    """The folder of a tokenized shard. Its name contains the content key and the time of the plan, so that files that a process
    of an earlier attempt still writes are not mistaken for those of this plan."""
    moment = hashlib.sha256(plan.now.encode()).hexdigest()[:8]
    return partial / "spool" / f"shard_{number:06d}.{plan.key}.{moment}"


def _tokenize_shards(
    worker: ShardTokenizer, numbers: list[int], partial: Path, take: Take, report: Report, done: Done
) -> None:
    with undisturbed(), keep_timers():
        while (place := take()) < len(numbers):
            number = numbers[place]
            worker.run(worker.plan.shards[number], spool_folder(partial, worker.plan, number), report, done)
        worker.finish()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Raise the threshold of the garbage collector in the context: rows are many small objects without reference cycles, and
    the default threshold costs a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _pack_shards(
    plan: Plan, numbers: list[int], splits: list[Any], partial: Path, target: Path, take: Take, done: Done
) -> dict[int, list[Any]]:
    results: dict[int, list[Any]] = {}
    with undisturbed(), ShardPacker(plan, target) as packer:
        while (place := take()) < len(numbers):
            number = numbers[place]
            results[number] = packer.pack(plan.shards[number], spool_folder(partial, plan, number), splits[number])
            done()
        packer.finish()
    return results


def _next(taken: Any) -> int:
    with taken.get_lock():
        taken.value += 1
        return int(taken.value) - 1


class _Helper:
    """Global state of a helper process."""

    plan: Plan
    taken: Any
    reports: Any
    chosen: Any
    library: str | None = None
    choosing = Lock()


def _start_helper(plan: Plan, taken: Any, reports: Any, chosen: Any, lifeline: Any) -> None:
    end_with_parent(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent gets it too and ends its helpers
    os.environ["RAYON_NUM_THREADS"] = "1"  # one process per core already
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _Helper.plan, _Helper.taken, _Helper.reports, _Helper.chosen = plan, taken, reports, chosen


def _library() -> str:
    """The library that the parent chose; waits until it is known."""
    with _Helper.choosing:
        if _Helper.library is None:
            _Helper.library = _Helper.chosen.get()
    return _Helper.library


def _tokenize(numbers: list[int], partial: Path) -> None:
    worker = ShardTokenizer(_Helper.plan, _library)
    worker.warm_up()
    reports = _Helper.reports
    try:
        _tokenize_shards(worker, numbers, partial, _take, lambda *more: reports.put(more), lambda: reports.put(()))
    finally:
        worker.close()


def _pack(numbers: list[int], splits: list[Any], partial: Path, target: Path) -> dict[int, list[Any]]:
    return _pack_shards(_Helper.plan, numbers, splits, partial, target, _take, lambda: _Helper.reports.put(()))


def _take() -> int:
    return _next(_Helper.taken)
