"""Rows that are read ahead are the rows, and what goes wrong in the thread is told."""

from threading import Event, current_thread

import pytest

from sft_hydra.engine.prefetch import Prefetcher


class SlowRows:
    def __init__(self):
        self.read, self.threads, self.go = [], set(), Event()

    def __getitem__(self, index):
        self.go.wait(10)
        self.read.append(index)
        self.threads.add(current_thread().name)
        if index == 3:
            raise ValueError("row 3 is broken")
        return f"row {index}"

    def costs(self, numbers):
        return [float(n) for n in numbers]


def test_expected_rows_are_read_by_the_thread_and_each_once():
    rows = SlowRows()
    rows.go.set()
    with Prefetcher(rows) as ahead:
        ahead.expect([5, 2])
        ahead.expect([7])
        assert [ahead[2], ahead[7], ahead[5]] == ["row 2", "row 7", "row 5"]
        assert ahead.costs(range(2)) == [0.0, 1.0]
    assert rows.read == [5, 2, 7]
    assert current_thread().name not in rows.threads


def test_an_error_comes_where_the_row_is_taken():
    rows = SlowRows()
    rows.go.set()
    with Prefetcher(rows) as ahead:
        ahead.expect([3, 4])
        assert ahead[4] == "row 4"
        with pytest.raises(ValueError, match="row 3 is broken"):
            ahead[3]


def test_leaving_does_not_read_what_is_still_expected():
    rows = SlowRows()
    with Prefetcher(rows) as ahead:
        ahead.expect(range(10, 1000))
        rows.go.set()
    assert len(rows.read) < 990
