"""Rows of the next step, read by a thread while this one is computed."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from sft_hydra.engine.microbatches import TrainingRows
from sft_hydra.records import PackedRow


class Prefetcher:
    """`rows`, of which those that are expected are read at once. What a row's reading raises comes where it is taken."""

    def __init__(self, rows: TrainingRows) -> None:
        self.rows = rows
        self._coming: dict[int, Future[PackedRow]] = {}
        self._reader = ThreadPoolExecutor(1, "rows")

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)

    def expect(self, numbers: Iterable[int]) -> None:
        """Read these rows, each to be taken once."""
        for number in numbers:
            self._coming[number] = self._reader.submit(self.rows.__getitem__, number)

    def __getitem__(self, index: int) -> PackedRow:
        return self._coming.pop(index).result()

    def costs(self, numbers: range) -> Sequence[float]:
        return self.rows.costs(numbers)
