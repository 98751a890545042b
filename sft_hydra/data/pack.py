"""Which sequences share a packed row: `pack(lengths, capacity, algorithm, seed)`.

Invariant: every index is in exactly one bin, no bin holds more than `capacity` tokens, the same input gives the same
bins. Best-fit decreasing keeps the bins' free room in one big integer, a bit per length: O(n log n) with small constants.
"""

import random

import numpy as np
from numpy.typing import NDArray

from sft_hydra.config.schema_data import Packing


def pack(lengths: NDArray[np.int64], capacity: int, algorithm: Packing, seed: int = 0) -> list[list[int]]:
    """Bins of indices into `lengths`. Raises ValueError for a length of less than 0 or more than `capacity`."""
    if len(lengths) and (lengths.min() < 0 or lengths.max() > capacity):
        raise ValueError(f"lengths must be 0..{capacity}, found {lengths.min()}..{lengths.max()}")
    if algorithm is Packing.none:
        return [[index] for index in range(len(lengths))]
    if algorithm is Packing.concatenative:
        return _next_fit(lengths, capacity)
    if algorithm is Packing.first_fit_shuffle:
        shuffled = list(range(len(lengths)))
        random.Random(seed).shuffle(shuffled)
        return _first_fit(lengths, np.array(shuffled, np.int64), capacity)
    order = np.argsort(-lengths, kind="stable")
    if algorithm is Packing.first_fit_decreasing:
        return _first_fit(lengths, order, capacity)
    return _best_fit(lengths, order, capacity)


def _best_fit(lengths: NDArray[np.int64], order: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Each sequence goes to the fullest bin that has room for it."""
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # free room -> bins that have just this
    rooms = 0  # bit r is set if some bin has r tokens free
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            stack = open_bins[room]
            target = stack.pop()
            if not stack:
                rooms &= ~(1 << room)
            bins[target].append(index)
        else:
            room, target = capacity, len(bins)
            bins.append([index])
        room -= length
        if room:
            open_bins.setdefault(room, []).append(target)
            rooms |= 1 << room
    return bins


def _first_fit(lengths: NDArray[np.int64], order: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Each sequence goes to the first bin that has room for it, found in a tree of the largest room below a node."""
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    tree = [capacity] * (2 * leaves)
    bins: list[list[int]] = []
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        node = 1
        while node < leaves:
            node *= 2
            if tree[node] < length:
                node += 1
        target = node - leaves
        if target == len(bins):
            bins.append([])
        bins[target].append(index)
        tree[node] -= length
        while node > 1:
            node //= 2
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
    return bins


def _next_fit(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Sequences in their order; a new bin when the next does not fit."""
    bins: list[list[int]] = []
    room = -1
    for index, length in enumerate(lengths.tolist()):
        if length > room or not bins:
            bins.append([])
            room = capacity
        bins[-1].append(index)
        room -= length
    return bins
