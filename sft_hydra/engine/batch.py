"""Packed rows -> the tensors of one micro-batch. The only place where labels are shifted."""

from dataclasses import dataclass

import numpy as np
import torch

from sft_hydra.errors import DataError
from sft_hydra.records import IGNORE_INDEX, PackedRow


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of one or several packed rows, end to end; their conversations are the documents."""

    input_ids: torch.Tensor  # (T,) int64
    position_ids: torch.Tensor  # (T,) int64, from 0 in every document
    cu_seqlens: torch.Tensor  # (documents + 1,) int32
    max_seqlen: int
    targets: torch.Tensor  # (T,) int64: the next token, IGNORE_INDEX where nothing is learned
    source_ids: torch.Tensor  # (T,) int64: source of the token's document
    num_trained: int  # targets that are learned
    num_trained_sequences: int  # documents with at least one of them


def make_batch(rows: list[PackedRow], device: torch.device | str) -> Batch:
    """One micro-batch of `rows`. DataError if a mask trains the token after the end of a conversation."""
    input_ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
    trained = np.concatenate([row.loss_mask for row in rows]).astype(bool)
    lengths = np.concatenate([np.diff(row.seq_start_id, append=len(row.input_ids)) for row in rows])
    cu_seqlens = np.concatenate([[0], lengths.cumsum()])
    if trained[cu_seqlens[1:] - 1].any():
        raise DataError(
            "a packed row trains the token after the end of a conversation: its loss_mask must be rolled left by one "
            "inside each conversation, with 0 at the end"
        )
    targets = np.full_like(input_ids, IGNORE_INDEX)
    targets[:-1][trained[:-1]] = input_ids[1:][trained[:-1]]
    starts = cu_seqlens[:-1]
    arrays = (
        input_ids,
        np.arange(len(input_ids)) - np.repeat(starts, lengths),
        targets,
        np.repeat(np.concatenate([row.source_id for row in rows]).astype(np.int64), lengths),
    )
    ids, positions, labels, sources = (torch.from_numpy(array).to(device) for array in arrays)
    return Batch(
        input_ids=ids,
        position_ids=positions,
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)).to(device),
        max_seqlen=int(lengths.max()),
        targets=labels,
        source_ids=sources,
        num_trained=int(trained.sum()),
        num_trained_sequences=int(np.logical_or.reduceat(trained, starts).sum()),
    )
