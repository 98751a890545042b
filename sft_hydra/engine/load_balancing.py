"""Assigns packed sequences to data-parallel ranks so that attention cost is balanced. The attention cost of a packed
sequence is the sum of its squared document lengths.

The assignment is a function of these costs and the layout alone. The sequences of a global batch are the same under every
layout.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


def balanced_shares(costs: Sequence[float], ranks: int, size: int) -> list[list[list[int]]]:
    """Micro-batches of each rank, as indices into `costs`: `ranks` lists of equal length, each micro-batch of at most
    `size` packed sequences.

    Greedy longest-processing-time assignment fills micro-batches evenly. Micro-batches of similar cost run at the same
    time, since FSDP synchronizes ranks in every one; the most expensive goes to the rank with the least total cost so far.
    """
    rounds = -(-len(costs) // (ranks * size))
    batches: list[list[int]] = [[] for _ in range(ranks * rounds)]
    weights = [0.0] * len(batches)
    open_ = [(0.0, number) for number in range(len(batches))]  # heap of micro-batches with room
    heapify(open_)
    for row in sorted(range(len(costs)), key=lambda row: -costs[row]):
        _, lightest = heappop(open_)
        batches[lightest].append(row)
        weights[lightest] += costs[row]
        if len(batches[lightest]) < size:
            heappush(open_, (weights[lightest], lightest))
    ordered = sorted(range(len(batches)), key=lambda number: -weights[number])
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    totals = [0.0] * ranks
    for first in range(0, len(ordered), ranks):
        ranks_in_turn = sorted(range(ranks), key=lambda rank: totals[rank])
        for rank, number in zip(ranks_in_turn, ordered[first : first + ranks], strict=True):
            shares[rank].append(sorted(batches[number]))
            totals[rank] += weights[number]
    return shares
