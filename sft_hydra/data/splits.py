"""Assigns conversations to train, valid or test: `assign(hashes, ...)`.

The hash of a conversation, mixed with the seed, ranks it within its source; the lowest ranks are held out. So the ratios are
exact to one conversation for each source, equal conversations are in the same split, and file order and number of workers do
not matter. A source of 3 rows or more has at least one row in each split whose ratio is above 0 (with fewer rows, all are for
training).
"""

import numpy as np
from numpy.typing import NDArray

from sft_hydra.schema.data import SplitConfig

TRAIN, VALID, TEST, LEFT_OUT = 0, 1, 2, -1


def assign(
    hashes: list[NDArray[np.uint64]], only: list[str | None], ratios: SplitConfig, seed: int, dedup: bool = False
) -> list[NDArray[np.int8]]:
    """Splits of the rows of every source, (rows,) each: 0 train, 1 valid, 2 test, -1 dropped (a duplicate, with
    `dedup`, or a training row that is also in the separate validation file)."""
    has_valid_file = "valid" in only
    shares = (ratios.test, 0.0 if has_valid_file else ratios.valid)
    out = [_assign_one(values, split, shares, seed) for values, split in zip(hashes, only, strict=True)]
    valid_file = [values for values, split in zip(hashes, only, strict=True) if split == "valid"]
    held_out = {
        split: np.unique(np.concatenate([values[o == split] for values, o in zip(hashes, out, strict=True)]))
        for split in (TEST, VALID)
    }
    for values, splits, split in zip(hashes, out, only, strict=True):
        if split is None:
            splits[np.isin(values, held_out[VALID])] = VALID
            splits[np.isin(values, held_out[TEST])] = TEST
            if valid_file:
                splits[np.isin(values, np.concatenate(valid_file))] = LEFT_OUT
        if dedup and len(values):
            repeated = np.ones(len(values), bool)
            repeated[np.unique(values, return_index=True)[1]] = False
            splits[repeated] = LEFT_OUT
    return out


def _assign_one(
    hashes: NDArray[np.uint64], only: str | None, shares: tuple[float, float], seed: int
) -> NDArray[np.int8]:
    splits = np.full(len(hashes), VALID if only == "valid" else TRAIN, np.int8)
    if only is not None or len(hashes) < 3:
        return splits
    distinct, inverse, copies = np.unique(mix(hashes, seed), return_inverse=True, return_counts=True)
    before = np.cumsum(copies) - copies  # rows that rank lower than each distinct conversation
    middle = before + copies / 2
    held_out = [max(round(len(hashes) * share), 1) if share > 0 else 0 for share in shares]
    ranks = np.zeros(len(distinct), np.int8)
    ranks[middle < sum(held_out)] = VALID
    ranks[middle < held_out[0]] = TEST
    if (ranks != TRAIN).all():
        ranks[-1] = TRAIN
    splits[:] = ranks[inverse]
    return splits


def mix(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """splitmix64 of `values` and a seed: a fixed pseudo-random order, the same on every machine and version."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed % (1 << 64) + 1 & (1 << 64) - 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
