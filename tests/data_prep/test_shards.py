"""The packed format on disk: its schema, what other readers rely on, and shards of other tools."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sft_hydra.data.shards import ROW_GROUP, PackedSet
from sft_hydra.data_prep.prepare import open_existing, prepare
from sft_hydra.errors import DataError, MissingPackedDataError, SeqLengthMismatchError
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


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Packed shards of another tool: 64-bit ids, no sources, one split with starts and one without."""
    rows = {
        "input_ids": [[1, 2, 3, 4, 5], [6, 7, 8]],
        "loss_mask": [[0, 1, 0, 1, 0], [1, 1, 0]],
        "seq_start_id": [[0, 3], [0]],
    }
    for split, names in {"train": list(rows), "valid": ["input_ids", "loss_mask"]}.items():
        (tmp_path / "foreign" / split).mkdir(parents=True)
        parquet.write_table(
            pa.table({name: rows[name] for name in names}), tmp_path / "foreign" / split / "part0.parquet"
        )
    return tmp_path / "foreign"


def test_foreign_shards_need_trust_and_warn(foreign: Path) -> None:
    with pytest.raises(MissingPackedDataError):
        PackedSet.open(foreign)
    with pytest.warns(UserWarning, match="packed by another tool"):
        packed = PackedSet.open(foreign, trust_foreign=True)
    assert packed.num_rows("train") == packed.num_rows("valid") == 2
    assert packed.row_tokens("train").tolist() == [5, 3]
    assert packed.row_trained("train").tolist() == [2, 2]
    row = packed.row("train", 0)
    assert (row.input_ids.tolist(), row.seq_start_id.tolist(), row.source_id.tolist()) == (
        [1, 2, 3, 4, 5],
        [0, 3],
        [0, 0],
    )
    assert packed.row("valid", 1).seq_start_id.tolist() == [0]


@pytest.mark.filterwarnings("ignore:.*packed by another tool")
def test_foreign_shards_are_used_by_a_run(foreign: Path, questions: Questions) -> None:
    cfg = questions(5)
    cfg.data.packed_dir, cfg.data.trust_foreign = str(foreign), True
    found = open_existing(cfg)
    assert found is not None
    assert found.metadata["foreign"]
    cfg.seq_length = 4
    with pytest.raises(SeqLengthMismatchError, match="rows of 5 tokens do not fit seq_length=4"):
        open_existing(cfg)


@pytest.mark.filterwarnings("ignore:.*packed by another tool")
def test_foreign_files_without_the_columns_are_told(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"input_ids": [[1]], "labels": [[1]]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column loss_mask"):
        PackedSet.open(tmp_path, trust_foreign=True)
