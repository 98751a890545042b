"""The packed format on disk: its schema, what other readers rely on, and shards of other tools."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from sft_hydra.data.shard_file import ROW_GROUP
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.errors import MissingPackedDataError
from sft_hydra.schema.config import SftConfig

Questions = Callable[..., SftConfig]


def test_the_schema_is_what_packed_readers_take(questions: Questions) -> None:
    cfg = questions(3000)
    packed = prepare(cfg)
    file = parquet.ParquetFile(packed.folder / packed.metadata["shards"][0]["file"])
    assert [(field.name, str(field.type)) for field in file.schema_arrow] == [
        ("input_ids", "list<element: int32>"),
        ("loss_mask", "list<element: uint8>"),
        ("seq_start_id", "list<element: int32>"),
        ("source_id", "list<element: int16>"),
    ]
    assert file.metadata.num_row_groups > 1
    assert all(file.metadata.row_group(i).num_rows <= ROW_GROUP for i in range(file.metadata.num_row_groups))
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_squares_of_lengths_are_those_of_the_rows(questions: Questions) -> None:
    packed = prepare(questions(3000))
    assert len(packed.metadata["shards"]) > 1
    for split in ("train", "valid"):
        rows = [packed.row(split, i) for i in range(packed.num_rows(split))]
        expected = [int(np.square(np.diff(row.seq_start_id, append=len(row.input_ids))).sum()) for row in rows]
        assert len(set(expected)) > 1
        assert packed.row_squares(split).tolist() == expected


def test_row_by_row_as_a_stranger_reads_it(questions: Questions) -> None:
    packed = prepare(questions(500))
    index = 0
    for shard in packed.metadata["shards"]:
        for row in parquet.read_table(packed.folder / shard["file"]).to_pylist():
            ids, mask, starts = row["input_ids"], row["loss_mask"], row["seq_start_id"]
            assert len(ids) == len(mask) <= 256
            assert starts[0] == 0
            assert starts == sorted(set(starts))
            assert starts[-1] < len(ids)
            assert all(mask[end - 1] == 0 for end in [*starts[1:], len(ids)])
            if shard["split"] == "train":
                found = packed.row("train", index)
                assert (found.input_ids.tolist(), found.loss_mask.tolist(), found.seq_start_id.tolist()) == (
                    ids,
                    mask,
                    starts,
                )
                index += 1
    assert index == packed.num_rows("train")
    with pytest.raises(IndexError):
        packed.row("train", index)


def test_no_metadata_no_packed_set(questions: Questions, tmp_path: Path) -> None:
    packed = prepare(questions(20))
    (packed.folder / "metadata.json").unlink()
    with pytest.raises(MissingPackedDataError):
        PackedSet.open(packed.folder)
