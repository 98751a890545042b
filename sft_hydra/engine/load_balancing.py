"""Who takes which rows of a step, so that nobody waits: attention of a packed row costs the sum of its squared lengths.

Owns that this is a function of the rows' costs and of the layout alone. The rows of a step, and so what it learns, are the
same under every layout.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


def balanced_shares(costs: Sequence[float], ranks: int, size: int) -> list[list[list[int]]]:
    """For each rank its micro-batches, as indices into `costs`; all ranks have the same number of at most `size` rows.

    Heavy and light rows share a micro-batch. Micro-batches of like weight run at the same time, because sharded weights
    make ranks wait for each other in every one of them; the heaviest goes to the rank that has had least.
    """
    rounds = -(-len(costs) // (ranks * size))
    batches: list[list[int]] = [[] for _ in range(ranks * rounds)]
    weights = [0.0] * len(batches)
    open_ = [(0.0, number) for number in range(len(batches))]
    heapify(open_)
    for row in sorted(range(len(costs)), key=lambda row: -costs[row]):
        _, lightest = heappop(open_)
        batches[lightest].append(row)
        weights[lightest] += costs[row]
        if len(batches[lightest]) < size:
            heappush(open_, (weights[lightest], lightest))
    ordered = sorted(range(len(batches)), key=lambda number: -weights[number])
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    had = [0.0] * ranks
    for first in range(0, len(ordered), ranks):
        ranks_in_turn = sorted(range(ranks), key=lambda rank: had[rank])
        for rank, number in zip(ranks_in_turn, ordered[first : first + ranks], strict=True):
            shares[rank].append(sorted(batches[number]))
            had[rank] += weights[number]
    return shares
