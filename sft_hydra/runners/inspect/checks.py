"""Flags packed conversations that look wrong, from the tokens and masks of the shards: `suspicious`."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

CHECKS = (  # bit i of the flags; the most serious last
    ("repeats itself", "a third or more of the supervised tokens repeat an earlier run of eight tokens"),
    ("cut off", "the conversation ends without an end-of-turn token"),
    ("no end of turn", "a supervised span ends without an end-of-turn token: the model does not learn to stop there"),
    ("all trained", "every token is supervised, including prompts"),
    ("nothing trained", "no token is supervised: the conversation only costs time"),
)
REPEATS, CUT, NO_END, ALL, NOTHING = (1 << bit for bit in range(len(CHECKS)))
RUN = 8  # tokens
REPEATED = 33  # percent
FEWEST_RUNS = 32  # in shorter answers repetition is not meaningful


def suspicious(
    ids: NDArray[np.int32],
    learned: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    end_of_turn: Collection[int],
    spaces: Collection[int],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(flags, repetition in percent), each (C,), of conversations concatenated in `ids` and `learned` (T,), separated by
    `offsets` (C + 1,). White space may follow an end-of-turn token. Without `end_of_turn` ids, ends are not checked."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    length, trained = np.diff(offsets), np.bincount(owner[learned], minlength=len(offsets) - 1)
    flags = np.zeros(len(length), np.uint8)
    flags[trained == 0] |= NOTHING
    flags[(trained > 0) & (trained >= length - 1)] |= ALL
    if end_of_turn:
        ended = _closes(ids, offsets[owner], end_of_turn, spaces)
        last = np.zeros(len(ids), bool)
        last[offsets[1:] - 1] = True
        span_end = learned & (last | ~np.append(learned[1:], False))
        flags[owner[span_end & ~ended]] |= NO_END
        flags[owner[last & ~ended]] |= CUT
    repetition, runs = _repetition(ids[learned], owner[learned], len(length))
    flags[(repetition >= REPEATED) & (runs >= FEWEST_RUNS)] |= REPEATS
    return flags, repetition.astype(np.uint8)


def _closes(
    ids: NDArray[np.int32], first: NDArray[np.int64], end_of_turn: Collection[int], spaces: Collection[int]
) -> NDArray[np.bool_]:
    """(T,): the token ends a turn, or is white space after one that does."""
    closes = np.isin(ids, list(end_of_turn))
    after = np.flatnonzero(np.isin(ids, list(spaces)) & ~closes)
    for position in after[after > first[after]].tolist():
        closes[position] = closes[position - 1]
    return closes


def _repetition(
    ids: NDArray[np.int32], owner: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(percent of runs of RUN supervised tokens that occurred earlier in the conversation, number of runs), each (count,)."""
    if len(ids) < RUN:
        return np.zeros(count, np.int64), np.zeros(count, np.int64)
    runs = len(ids) - RUN + 1
    mixed = owner[:runs].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for offset in range(RUN):
        mixed = (mixed ^ ids[offset : offset + runs].astype(np.uint64)) * np.uint64(0x100000001B3)
        mixed ^= mixed >> np.uint64(29)
    inside = owner[:runs] == owner[RUN - 1 :]
    own, mixed = owner[:runs][inside], mixed[inside]
    total = np.bincount(own, minlength=count)
    _, first = np.unique(mixed, return_index=True)
    distinct = np.bincount(own[first], minlength=count)
    return 100 * (total - distinct) // np.maximum(total, 1), total
