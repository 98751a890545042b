"""Splitting of raw-text documents that are longer than a packed sequence: `split_documents`.

Invariant: each token of a document except the first is a target exactly once: every piece starts with the last token of the
previous piece as unsupervised context.
"""

import numpy as np
from numpy.typing import NDArray

from sft_hydra.data_prep.tokenize import TokenBatch


def split_documents(
    tokens: TokenBatch, owners: NDArray[np.int64], longest: int
) -> tuple[TokenBatch, NDArray[np.int64], int]:
    """The documents in pieces of at most `longest` tokens, the owner of each piece (pieces,), and how many documents were split.
    `owners` (sequences,): index of the row of each document."""
    longest = max(longest, 2)
    long = np.flatnonzero(tokens.lengths > longest)
    if not len(long):
        return tokens, owners, 0
    starts = np.cumsum(tokens.lengths) - tokens.lengths
    ids: list[NDArray[np.int32]] = []
    mask: list[NDArray[np.uint8]] = []
    pieces = np.ones(len(owners), np.int64)
    pieces[long] = -(-(tokens.lengths[long] - 1) // (longest - 1))
    for start, length, count in zip(starts.tolist(), tokens.lengths.tolist(), pieces.tolist(), strict=True):
        for first in range(start, start + count * (longest - 1), longest - 1):
            stop = start + length if count == 1 else min(first + longest, start + length)
            ids.append(tokens.input_ids[first:stop])
            part = tokens.loss_mask[first:stop].copy()
            if first > start:
                part[0] = 0
            mask.append(part)
    batch = TokenBatch(np.concatenate(ids), np.concatenate(mask), np.array([len(part) for part in ids], np.int64))
    return batch, np.repeat(owners, pieces), len(long)
