"""Reads the packed sequences of the next step in a thread while the current step is computed."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from sft_hydra.engine.microbatches import TrainingRows
from sft_hydra.records import PackedRow


class Prefetcher:
    """`rows` with read-ahead: `expect` starts reading, indexing returns the result or raises the error of its reading."""

    def __init__(self, rows: TrainingRows) -> None:
        self.rows = rows
        self._pending: dict[int, Future[PackedRow]] = {}
        self._reader = ThreadPoolExecutor(1, "rows")

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)

    def expect(self, numbers: Iterable[int]) -> None:
        """Start reading the packed sequences with these indices; each is taken once."""
        for number in numbers:
            self._pending[number] = self._reader.submit(self.rows.__getitem__, number)

    def __getitem__(self, index: int) -> PackedRow:
        return self._pending.pop(index).result()

    def costs(self, numbers: range) -> Sequence[float]:
        """See `TrainingRows.costs`."""
        return self.rows.costs(numbers)
