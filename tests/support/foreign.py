"""Packed shards as other tools write them: rows with rolled masks, and the tree of the Nemotron recipe's output."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

Row = dict[str, Any]
PLAIN = (pa.list_(pa.int32()), pa.list_(pa.uint8()))


def packed_rows(count: int, seed: int, vocabulary: int = 300, exactly: int | None = None) -> list[Row]:
    """Rows of a few conversations and at most 64 tokens; each conversation trains some of its last tokens."""
    random, rows = np.random.default_rng(seed), []
    for _ in range(count):
        lengths = [int(length) for length in random.integers(2, 12, 5)]
        if exactly:
            lengths = [*lengths[:3], exactly - sum(lengths[:3])]
        masks = [[0] * (first := int(random.integers(0, n - 1))) + [1] * (n - 1 - first) + [0] for n in lengths]
        rows.append(
            {
                "input_ids": random.integers(5, vocabulary, sum(lengths)).tolist(),
                "loss_mask": [value for mask in masks for value in mask],
                "seq_start_id": np.cumsum([0, *lengths[:-1]]).tolist(),
            }
        )
    return rows


def write_shard(path: Path, rows: list[Row], *, starts: bool = True, types: tuple[Any, Any] = PLAIN) -> None:
    """One file with all rows in one row group, as the recipe's thousand."""
    kinds = {"input_ids": types[0], "loss_mask": types[1], "seq_start_id": pa.list_(pa.int32())}
    if not starts:
        del kinds["seq_start_id"]
    columns = {name: [row[name] for row in rows] for name in kinds}
    if types[1].value_type == pa.bool_():
        columns["loss_mask"] = [[bool(value) for value in mask] for mask in columns["loss_mask"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        pa.table({n: pa.array(columns[n], kind) for n, kind in kinds.items()}), path, row_group_size=1000
    )


def recipe_output(root: Path, *, starts: bool = True) -> dict[str, list[Row]]:
    """The tree that Nemotron's data preparation leaves: shards in runs/, links to them in splits/, its metadata. Returns the
    rows of each split in the order of its links; each row has the `name` of its data set."""
    expected: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    position = 0
    for name in ("alpha", "beta"):
        for number, split in enumerate(("train", "train", "valid" if name == "alpha" else "test", None)):
            shard = root / "runs" / "0123456789abcdef" / "datasets" / name / "feedbeef" / f"shard_{number:06d}.parquet"
            rows = packed_rows(0 if number == 1 and name == "beta" else 6 + number, seed=position)
            write_shard(shard, rows, starts=starts)
            if split:  # one shard of each is left out by its weight
                link = root / "splits" / split / f"{position:06d}__{name}__shard_{number:06d}.parquet"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.relpath(shard, link.parent))
                expected[split] += [{**row, "name": name} for row in rows]
            position += 1
    (root / "blend.json").write_text('{"datasets": []}')
    (root / "splits" / "metadata.json").write_text("{}")
    said = {
        "path": str(root),
        "type": "SFTDataArtifact",
        "pack_size": 64,
        "tokenizer_uri": "https://huggingface.co/a/b",
    }
    (root / "metadata.json").write_text(json.dumps(said))
    return expected
