"""Assignment of sequences to packed sequences (bin packing): `pack(lengths, capacity, algorithm, seed)`.

Invariant: every index is in exactly one bin, no bin holds more than `capacity` tokens, the same input gives the same
bins. Best fit fills one bin after the other: the longest remaining sequence, then one, two or three sequences that fill the
rest exactly, else the longest that fits. The remaining lengths are the bits of one big integer, so that finding two
lengths with a fixed sum takes a shift and an `and`: O(n log n) with small constants for all distributions of lengths.
"""

import random
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from sft_hydra.schema.data import Packing

LOOK_AHEAD = 20  # lengths tried as the longest of three that fill a bin
LAST = 6  # last sequences of a bin, chosen with similar lengths


def pack(lengths: NDArray[np.int64], capacity: int, algorithm: Packing, seed: int = 0) -> list[list[int]]:
    """Bins of indices into `lengths` (sequences,), in tokens like `capacity`. `seed` is used by first_fit_shuffle. ValueError for
    a length below 0 or above `capacity`."""
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
    """Remaining sequences by length. If there is one of length l, bit l of `lengths` and bit capacity - l of `mirrored` are
    set."""

    def __init__(self, lengths: NDArray[np.int64], capacity: int) -> None:
        self.capacity = capacity
        self.stacks: dict[int, list[int]] = {}
        self.lengths = self.mirrored = 0
        order = np.argsort(lengths, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
            if len(same) and lengths[same[0]] > 0:
                self.stacks[int(lengths[same[0]])] = same[::-1].tolist()  # the first of a length is taken first
        for length in self.stacks:
            self._flip(length)

    def take(self, length: int, count: int = 1) -> list[int]:
        """Remove up to `count` sequences of this length."""
        stack = self.stacks[length]
        taken = stack[: -count - 1 : -1]
        del stack[-count:]
        if not stack:
            self._flip(length)
        return taken

    def longest(self, room: int) -> int:
        """The largest remaining length of at most `room`; 0 if there is none."""
        most = self.lengths.bit_length() - 1
        if most > room:
            most = (self.lengths & ((2 << room) - 1)).bit_length() - 1
        return max(most, 0)

    def exact(self, room: int) -> list[int]:
        """Up to three remaining lengths with `room` tokens in total; empty if none are found among the LOOK_AHEAD longest."""
        if self.lengths >> room & 1:
            return [room]
        if found := self._pair(room):
            return found
        below = self.lengths & ((1 << room) - 1)
        for _ in range(LOOK_AHEAD):
            length = below.bit_length() - 1
            if 3 * length < room:
                break
            below ^= 1 << length
            is_last = len(self.stacks[length]) == 1
            if is_last:
                self._flip(length)
            found = self._pair(room - length, taken=length)
            if is_last:
                self._flip(length)
            if found:
                return [length, *found]
        return []

    def repeats(self, used: Counter[int]) -> int:
        """How many more bins with sequences of these lengths follow one. What a bin gets depends on which lengths have no
        sequence left, one, two, or more: it gets the same while each length in use has three besides those it gets."""
        return max(min((len(self.stacks[length]) - 3) // count for length, count in used.items()), 0)

    def _flip(self, length: int) -> None:
        self.lengths ^= 1 << length
        self.mirrored ^= 1 << (self.capacity - length)

    def _pair(self, room: int, taken: int = 0) -> list[int]:
        """Two remaining lengths with `room` tokens in total. `taken`: a length of which one sequence is in use."""
        both = self.lengths & (self.mirrored >> (self.capacity - room))
        half = room // 2
        if room % 2 == 0 and both >> half & 1 and len(self.stacks[half]) - (half == taken) < 2:
            both ^= 1 << half
        if not both:
            return []
        length = both.bit_length() - 1
        return [length, room - length]


def _best_fit(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = [[index] for index in np.flatnonzero(lengths == 0).tolist()]
    supply = _Supply(lengths, capacity)
    while longest := supply.longest(capacity):
        members, chosen = _fill_bin(supply, longest)
        bins.append(members)
        again = range(supply.repeats(Counter(chosen)))
        bins += [[index for length in chosen for index in supply.take(length)] for _ in again]
    return bins


def _fill_bin(supply: _Supply, length: int) -> tuple[list[int], list[int]]:
    """The members of a bin whose first sequence has this length, and the lengths of all its members."""
    members = supply.take(length)
    chosen = [length]
    room = supply.capacity - length
    while room and (length := supply.longest(room)):
        count = -(-room // length)  # sequences needed at least to fill the rest
        if count > LAST:  # far from full: nothing fills the rest exactly
            taken = supply.take(length, count - LAST)
            members += taken
            chosen += [length] * len(taken)
            room -= length * len(taken)
            continue
        found = supply.exact(room)
        if not found:  # sequences of similar length can fill it exactly, the longest rarely
            found = [supply.longest(-(-room // count)) or length]
        members += [index for length in found for index in supply.take(length)]
        chosen += found
        room -= sum(found)
    return members, chosen


def _first_fit(lengths: NDArray[np.int64], order: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Each sequence goes to the first bin with room for it, found in a tree whose nodes hold the largest room below them."""
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
