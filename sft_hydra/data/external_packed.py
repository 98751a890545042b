"""Packed Parquet files of other tools, without our metadata: what can be said about them by reading them once."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from sft_hydra.errors import DataError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val"),
    "test": ("test",),
}


def read_foreign(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:
    """Metadata and row index of a folder of packed Parquet files: in folders train/valid/test, in files of such names,
    else all of them are for training. Raises DataError if there are none or a column is missing."""
    shards: list[dict[str, Any]] = []
    rows: dict[str, NDArray[np.int64]] = {}
    for split, files in _files(folder).items():
        parts = [_read(folder, file, split, shards) for file in files]
        rows[split] = np.concatenate(parts) if parts else np.zeros((0, 3), np.int64)
    if not shards:
        raise DataError(f"{folder}: neither metadata.json nor Parquet files")
    warnings.warn(
        f"{folder}: packed by another tool. Tokenizer, template, masks and sequence length cannot be checked.",
        stacklevel=3,
    )
    tokens = {split: int(index[:, 0].sum()) for split, index in rows.items()}
    longest = max(int(index[:, 0].max(initial=0)) for index in rows.values())
    metadata = {
        "format_version": None,
        "foreign": True,
        "pack_size": longest,
        "sources": [{"name": folder.name}],
        "shards": shards,
        "splits": {split: {"rows": len(rows[split]), "tokens": tokens[split]} for split in rows},
        "tokenizer": {"fingerprint": None},
    }
    return metadata, rows


def _files(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        found[split] = sorted(
            file for name in names for file in [*(folder / name).rglob("*.parquet"), *folder.glob(f"{name}*.parquet")]
        )
    if not any(found.values()):
        found["train"] = sorted(folder.rglob("*.parquet"))
    return found


def _read(folder: Path, path: Path, split: str, shards: list[dict[str, Any]]) -> NDArray[np.int64]:
    file = parquet.ParquetFile(path)
    missing = {"input_ids", "loss_mask"} - set(file.schema_arrow.names)
    if missing:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))}; not a packed shard")
    index = np.zeros((file.metadata.num_rows, 3), np.int64)
    position = 0
    for batch in file.iter_batches(batch_size=64, columns=["input_ids", "loss_mask"]):
        part = index[position : position + batch.num_rows]
        part[:, 0] = pc.list_value_length(batch.column("input_ids")).to_numpy(zero_copy_only=False)
        mask = batch.column("loss_mask")
        ends = np.concatenate([[0], np.cumsum(part[:, 0])])
        total = np.concatenate([[0], np.cumsum(mask.flatten().to_numpy(zero_copy_only=False).astype(np.int64))])
        part[:, 1] = total[ends[1:]] - total[ends[:-1]]
        position += batch.num_rows
    name = str(path.relative_to(folder))
    shards.append({"file": name, "split": split, "rows": len(index), "bytes": path.stat().st_size, "sha256": None})
    return index
