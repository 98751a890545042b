"""Workers for both halves of a preparation: in this process for one, else a pool of processes with one queue of reports.

Invariant: which worker does a shard changes nothing in it. Processes are spawned, because forking one that has threads
(tokenizers, torch) can hang it.
"""

import multiprocessing
import os
import queue
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from sft_hydra.data.pack_shard import pack_shard
from sft_hydra.data.plan import Plan, ShardPlan
from sft_hydra.data.tokenize_shard import ShardTokenizer

Report = Callable[[int, int, int, int], None]

_worker: "ShardTokenizer | None" = None  # of this process
_plan: Plan | None = None
_reports: Any = None


class Pool:
    """`tokenize` and `pack` do their half for many shards; use it as a context manager."""

    def __init__(self, plan: Plan, workers: int, report: Report) -> None:
        self.plan = plan
        self.workers = workers
        self.report = report
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Pool":
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")
            self.reports = context.Queue()
            self.pool = ProcessPoolExecutor(self.workers, context, _start, (self.plan, self.reports))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.reports.close()

    def tokenize(self, shards: list[ShardPlan], partial: Path, done: Callable[[], None]) -> None:
        """Write the spools of these shards."""
        if self.pool is None:
            worker = ShardTokenizer(self.plan) if shards else None
            for shard in shards:
                assert worker is not None
                worker.run(shard, spool_folder(partial, shard.number), self.report)
                done()
            return
        largest_first = sorted(shards, key=lambda shard: -shard.rows)
        self._gather(
            {self.pool.submit(_tokenize, shard.number, partial): shard.number for shard in largest_first}, done
        )

    def pack(self, splits: list[Any], partial: Path, done: Callable[[], None]) -> list[Any]:
        """Write the Parquet shards; their metadata entries in the order of the plan."""
        numbers = range(len(self.plan.shards))
        if self.pool is None:
            found = []
            for number in numbers:
                found += pack_one(self.plan, number, splits[number], partial)
                done()
            return found
        futures = {self.pool.submit(_pack, number, splits[number], partial): number for number in numbers}
        results = self._gather(futures, done)
        return [entry for number in numbers for entry in results[number]]

    def _gather(self, futures: dict[Future[Any], int], done: Callable[[], None]) -> dict[int, Any]:
        results: dict[int, Any] = {}
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            self._drain()
            for future in finished:
                results[futures[future]] = future.result()
                done()
        self._drain()
        return results

    def _drain(self) -> None:
        while True:
            try:
                self.report(*self.reports.get_nowait())
            except queue.Empty:
                return


def spool_folder(partial: Path, number: int) -> Path:
    return partial / "spool" / f"shard_{number:06d}"


def pack_one(plan: Plan, number: int, splits: Any, partial: Path) -> list[Any]:
    return pack_shard(plan, plan.shards[number], spool_folder(partial, number), splits, partial)


def _start(plan: Plan, reports: Any) -> None:
    global _plan, _reports
    os.environ["RAYON_NUM_THREADS"] = "1"  # one process per core already
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _plan, _reports = plan, reports


def _tokenize(number: int, partial: Path) -> None:
    global _worker
    assert _plan is not None
    if _worker is None:
        _worker = ShardTokenizer(_plan)
    _worker.run(_plan.shards[number], spool_folder(partial, number), lambda *more: _reports.put(more))


def _pack(number: int, splits: Any, partial: Path) -> list[Any]:
    assert _plan is not None
    return pack_one(_plan, number, splits, partial)
