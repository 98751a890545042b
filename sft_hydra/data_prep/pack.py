"""Which sequences share a packed row: `pack(lengths, capacity, algorithm, seed)`.

Invariant: every index is in exactly one bin, no bin holds more than `capacity` tokens, the same input gives the same
bins. Best fit fills one bin after the other: the longest sequence that is left, then what fills the rest exactly (one, two
or three sequences), else the longest that fits. The lengths that are left are the bits of one big integer, so that
finding two of a given sum is a shift and an `and`: O(n log n) with small constants, whatever the lengths.
"""

import random

import numpy as np
from numpy.typing import NDArray

from sft_hydra.schema.data import Packing

LOOK_AHEAD = 20  # lengths tried as the longest of three that fill a bin
LAST = 6  # sequences of a bin that are chosen to be of like length


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
    if algorithm is Packing.first_fit_decreasing:
        return _first_fit(lengths, np.argsort(-lengths, kind="stable"), capacity)
    return _best_fit(lengths, capacity)


class _Supply:
    """Sequences that are left, by length. Bit l of `lengths` is set if there is one of length l; bit capacity - l of
    `mirrored` too."""

    def __init__(self, lengths: NDArray[np.int64], capacity: int) -> None:
        self.capacity = capacity
        self.stacks: dict[int, list[int]] = {}
        self.lengths = self.mirrored = 0
        order = np.argsort(lengths, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
            if len(same) and lengths[same[0]] > 0:
                self.stacks[int(lengths[same[0]])] = same[::-1].tolist()  # the first of a length is taken first
        for length in self.stacks:
            self.lengths |= 1 << length
            self.mirrored |= 1 << (capacity - length)

    def put(self, length: int, index: int) -> None:
        self.stacks.setdefault(length, []).append(index)
        self.lengths |= 1 << length
        self.mirrored |= 1 << (self.capacity - length)

    def take(self, length: int) -> int:
        stack = self.stacks[length]
        index = stack.pop()
        if not stack:
            self.lengths &= ~(1 << length)
            self.mirrored &= ~(1 << (self.capacity - length))
        return index

    def longest(self, room: int) -> int:
        """The longest length of at most `room`, 0 if there is none."""
        return max((self.lengths & ((2 << room) - 1)).bit_length() - 1, 0)

    def exact(self, room: int) -> list[int]:
        """One, two or three sequences of `room` tokens in all; none if it is not to be had at once."""
        if self.lengths >> room & 1:
            return [self.take(room)]
        if found := self._pair(room):
            return found
        below = self.lengths & ((1 << room) - 1)
        for _ in range(LOOK_AHEAD):
            length = below.bit_length() - 1
            if 3 * length < room:
                break
            below ^= 1 << length
            index = self.take(length)
            if found := self._pair(room - length):
                return [index, *found]
            self.put(length, index)
        return []

    def _pair(self, room: int) -> list[int]:
        both = self.lengths & ((1 << room) - 1) & (self.mirrored >> (self.capacity - room))
        if room % 2 == 0 and both >> (room // 2) & 1 and len(self.stacks[room // 2]) < 2:
            both ^= 1 << (room // 2)
        if not both:
            return []
        length = both.bit_length() - 1
        return [self.take(length), self.take(room - length)]


def _best_fit(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    empty = np.flatnonzero(lengths == 0).tolist()
    supply = _Supply(lengths, capacity)
    bins: list[list[int]] = [[index] for index in empty]
    while longest := supply.longest(capacity):
        members = [supply.take(longest)]
        room = capacity - longest
        while room:
            if found := supply.exact(room):
                members += found
                break
            length = supply.longest(room)
            if not length:
                break
            count = -(-room // length)  # sequences that the rest takes at least
            if count <= LAST:  # so many like one another can fill it exactly, the longest alone hardly ever
                length = supply.longest(-(-room // count)) or length
            members.append(supply.take(length))
            room -= length
        bins.append(members)
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
