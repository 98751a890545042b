"""Packed rows as plain arrays without pickle, beside the Parquet shards: `write_npy`.

{training,validation,test}.npy               input_ids of all packed rows end to end, int32
{training,validation,test}_loss_mask.npy     the shifted mask, uint8
{training,validation,test}_offsets.npy       (rows + 1,) int64: where each packed row starts
{training,validation,test}_seq_start_id.npy  starts inside each row, int32, end to end
{training,validation,test}_seq_offsets.npy   (rows + 1,) int64: where each row's starts begin
"""

from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from sft_hydra.data.shard_file import columns_of

NAMES = {"train": "training", "valid": "validation", "test": "test"}


def write_npy(folder: Path, entries: list[Any]) -> None:
    """Copy the shards listed in `entries` (of metadata.json) into flat arrays in `folder`, one shard at a time."""
    for split, name in NAMES.items():
        own = [entry for entry in entries if entry["split"] == split]
        if not own:
            continue
        tokens, rows = sum(e["tokens"] for e in own), sum(e["rows"] for e in own)
        sequences = sum(e["sequences"] for e in own)
        ids = _create(folder / f"{name}.npy", tokens, np.int32)
        mask = _create(folder / f"{name}_loss_mask.npy", tokens, np.uint8)
        starts = _create(folder / f"{name}_seq_start_id.npy", sequences, np.int32)
        offsets = _create(folder / f"{name}_offsets.npy", rows + 1, np.int64)
        seq_offsets = _create(folder / f"{name}_seq_offsets.npy", rows + 1, np.int64)
        token = sequence = row = 0
        for entry in own:
            columns = columns_of(parquet.read_table(folder / entry["file"]))
            ids[token : token + entry["tokens"]] = columns.input_ids
            mask[token : token + entry["tokens"]] = columns.loss_mask
            starts[sequence : sequence + entry["sequences"]] = columns.seq_start_id
            offsets[row : row + entry["rows"] + 1] = columns.token_offsets.astype(np.int64) + token
            seq_offsets[row : row + entry["rows"] + 1] = columns.sequence_offsets.astype(np.int64) + sequence
            token, sequence, row = token + entry["tokens"], sequence + entry["sequences"], row + entry["rows"]
        for array in (ids, mask, starts, offsets, seq_offsets):
            array.flush()


def _create(path: Path, length: int, kind: Any) -> Any:
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(length,))
