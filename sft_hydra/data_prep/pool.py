"""Who does the shards of a preparation, in both halves: this process, and helpers beside it if more are wanted.

Each takes the next shard from one counter, so that nobody waits for the slowest and a helper that starts late costs nothing.
Invariant: which process does a shard changes nothing in it, and no helper outlives this process. Helpers are spawned, because
forking a process that has threads (tokenizers, torch) can hang it.
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

from sft_hydra.data_prep.pack_shard import ShardPacker
from sft_hydra.data_prep.plan import Plan, ShardPlan
from sft_hydra.data_prep.tokenize_shard import Done, Report, ShardTokenizer
from sft_hydra.errors import DataError
from sft_hydra.process import signals
from sft_hydra.process.lifeline import Lifeline, end_with_parent

Take = Callable[[], int]  # the place in the list of the next shard to do


class WorkerPool:
    """`tokenize` and `pack` do their half for many shards; use it as a context manager. `library` is the one that
    encodes, when it has been chosen."""

    def __init__(self, plan: Plan, library: Future[str], workers: int, report: Report) -> None:
        self.plan = plan
        self.library = library
        self.helpers = workers - 1
        self.told = report
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
            self.library.add_done_callback(self._tell)
        return self

    def _tell(self, library: Future[str]) -> None:
        """Let every helper know the library; any, if the choice failed, so that they come to an end."""
        for _ in range(self.helpers):
            self.chosen.put("tokenizers" if library.exception() else library.result())

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            if kind is not None:  # an error, or a wish to stop: whole spools stay, the rest is not waited for
                self.lifeline.cut()
                self.pool.shutdown(wait=True, cancel_futures=True)
                return
            while wait(self.futures, timeout=0.05).not_done:
                while not self.reports.empty():  # a helper that cannot report does not end
                    self.reports.get()
            self.pool.shutdown(wait=True)
            self.lifeline.cut()

    def tokenize(self, shards: list[ShardPlan], partial: Path, done: Done) -> None:
        """Write the spools of these shards."""
        if not shards:
            return
        wanted = {shard.number for shard in shards}
        numbers = [shard.number for shard in self.plan.by_size if shard.number in wanted]
        worker = ShardTokenizer(self.plan, self.library.result, alone=not self.helpers)
        try:
            take = self._share(done, _tokenize, numbers, partial)
            _tokenize_shards(worker, numbers, partial, take, self._report, done)
            self._wait()
        finally:
            worker.close()

    def pack(self, splits: list[Any], partial: Path, target: Path, done: Done) -> list[Any]:
        """Write the Parquet shards into `target`; their metadata entries in the order of the plan."""
        numbers = [shard.number for shard in self.plan.by_size]
        take = self._share(done, _pack, numbers, splits, partial, target)
        results = _pack_shards(self.plan, numbers, splits, partial, target, take, done)
        for found in self._wait():
            results.update(found)
        return [entry for number in sorted(results) for entry in results[number]]

    def _share(self, done: Done, work: Callable[..., Any], *given: Any) -> Take:
        """Let the helpers begin; how this process takes its shards."""
        self.done = done
        if self.pool is None:
            return count().__next__
        self.taken.value = 0
        self.futures = [self.pool.submit(work, *given) for _ in range(self.helpers)]
        return self._take

    def _take(self) -> int:
        self._look_after()
        return _next(self.taken)

    def _report(self, *more: int) -> None:
        self.told(*more)
        self._look_after()

    def _look_after(self) -> None:
        """Pass on what helpers report. Raises what one of them raised."""
        while self.futures and not self.reports.empty():
            more = self.reports.get()
            if more:
                self.told(*more)
            else:
                self.done()
        for future in self.futures:
            if future.done():
                _result(future)

    def _wait(self) -> list[Any]:
        """What the helpers return."""
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
        if signals.stop_requested():  # a signal to all of us
            raise signals.StoppedError("stopped by a signal") from None
        raise DataError(
            "a worker of the preparation was killed, most likely because memory ran out: lower data.num_workers. The same "
            "command goes on with the shards that are finished"
        ) from None


def spool_folder(partial: Path, plan: Plan, number: int) -> Path:
    """Where a tokenized shard is kept. Its name holds all that its content depends on, so that what a process of an earlier
    attempt may still write is never taken for part of another plan."""
    moment = hashlib.sha256(plan.now.encode()).hexdigest()[:8]
    return partial / "spool" / f"shard_{number:06d}.{plan.key}.{moment}"


def _tokenize_shards(
    worker: ShardTokenizer, numbers: list[int], partial: Path, take: Take, report: Report, done: Done
) -> None:
    with undisturbed():
        while (place := take()) < len(numbers):
            number = numbers[place]
            worker.run(worker.plan.shards[number], spool_folder(partial, worker.plan, number), report, done)
        worker.finish()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Rows are many small objects without cycles: looking for these after every 700 takes a tenth of the time."""
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
    """The state of a helper process."""

    plan: Plan
    taken: Any
    reports: Any
    chosen: Any
    library: str | None = None
    asking = Lock()


def _start_helper(plan: Plan, taken: Any, reports: Any, chosen: Any, lifeline: Any) -> None:
    end_with_parent(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent hears it too, and ends its helpers
    os.environ["RAYON_NUM_THREADS"] = "1"  # one process per core already
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _Helper.plan, _Helper.taken, _Helper.reports, _Helper.chosen = plan, taken, reports, chosen


def _library() -> str:
    """The library that the parent has chosen, when it has."""
    with _Helper.asking:
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
