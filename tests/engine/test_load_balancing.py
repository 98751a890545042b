"""Shares of a step's rows: every row once, as many micro-batches everywhere, and nobody has much more to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_hydra.engine.load_balancing import balanced_shares

COSTS = st.lists(st.floats(0, 1e9), min_size=1, max_size=40)


@given(COSTS, st.integers(1, 6), st.integers(1, 4))
def test_every_row_is_taken_once_and_all_ranks_have_the_same_number_of_micro_batches(costs, ranks, size):
    shares = balanced_shares(costs, ranks, size)
    assert sorted(row for rank in shares for rows in rank for row in rows) == list(range(len(costs)))
    assert len(shares) == ranks
    assert {len(rank) for rank in shares} == {-(-len(costs) // (ranks * size))}
    assert max(len(rows) for rank in shares for rows in rank) <= size


@given(COSTS, st.integers(2, 6), st.integers(1, 4))
def test_ranks_differ_by_no_more_than_the_heaviest_micro_batch(costs, ranks, size):
    shares = balanced_shares(costs, ranks, size)
    weights = [[sum(costs[row] for row in rows) for rows in rank] for rank in shares]
    totals = [sum(rank) for rank in weights]
    assert max(totals) - min(totals) <= max(map(max, weights)) * (1 + 1e-9)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_wait_less_than_with_rows_in_their_order(size):
    costs = [(i * 7919 % 64) ** 2 for i in range(64)]

    def waited(shares):
        """What all ranks wait for, one micro-batch after the other."""
        rounds = zip(*([sum(costs[row] for row in rows) for rows in rank] for rank in shares), strict=True)
        return sum(map(max, rounds)) / (sum(costs) / 8) - 1

    in_order = [[list(range(first, first + size)) for first in range(8 * r, 8 * r + 8, size)] for r in range(8)]
    assert waited(balanced_shares(costs, 8, size)) < 0.25 * waited(in_order)
