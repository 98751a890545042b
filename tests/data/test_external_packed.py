"""Packed shards of other tools: which files are which split, what is refused, and that they train with every runner."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from support.foreign import packed_rows, recipe_output, write_shard

from sft_hydra.cli import command
from sft_hydra.data.external_tree import split_files
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.blend import train_rows
from sft_hydra.data_prep.prepare import open_existing, prepare
from sft_hydra.engine.batch import make_batch
from sft_hydra.errors import (
    ConfigError,
    DataError,
    MissingPackedDataError,
    SeqLengthMismatchError,
    TokenizerMismatchError,
)
from sft_hydra.schema.config import SftConfig

Questions = Callable[..., SftConfig]


def splits_of(folder: Path) -> dict[str, list[str]]:
    found = split_files(folder)
    return {split: [str(file.relative_to(folder)) for file in files] for split, files in found.items() if files}


@pytest.mark.parametrize("inside", ["", "splits"])
@pytest.mark.parametrize("starts", [True, False])
def test_the_recipes_output_is_read_by_its_splits(tmp_path: Path, inside: str, starts: bool) -> None:
    """Each row once, in the split that it is linked from, under the name of its data set."""
    rows = recipe_output(tmp_path, starts=starts)
    packed = PackedSet.open(tmp_path / inside, trust_foreign=True)
    assert packed.sources == ["alpha", "beta"]
    assert packed.metadata["pack_size"] == 64
    for split, expected in rows.items():
        found = [packed.row(split, index) for index in range(packed.num_rows(split))]
        assert [row.input_ids.tolist() for row in found] == [row["input_ids"] for row in expected]
        assert [row.loss_mask.tolist() for row in found] == [row["loss_mask"] for row in expected]
        assert [row.seq_start_id.tolist() for row in found] == [
            row["seq_start_id"] if starts else [0] for row in expected
        ]
        assert [packed.sources[row.source_id[0]] for row in found] == [row["name"] for row in expected]
        assert packed.row_trained(split).tolist() == [sum(row["loss_mask"]) for row in expected]
        lengths = [np.diff([*(row["seq_start_id"] if starts else [0]), len(row["input_ids"])]) for row in expected]
        assert packed.row_squares(split).tolist() == [int((part**2).sum()) for part in lengths]
        assert make_batch(found, "cpu").num_trained == sum(sum(row["loss_mask"]) for row in expected)


TREES = {
    "folders": (["train/a.parquet", "valid/b.parquet", "test/c.parquet"], {"train": 1, "valid": 1, "test": 1}),
    "other names": (["training/a.parquet", "training/x/b.parquet", "val/b.parquet"], {"train": 2, "valid": 1}),
    "files": (["training.parquet", "validation.parquet"], {"train": 1, "valid": 1}),
    "numbered files": (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], {"train": 2}),
    "loose": (["shard_0.parquet", "shard_1.parquet", ".cache/shard_0.parquet"], {"train": 2}),
    "one folder down": (["packed/4096/shard_0.parquet"], {"train": 1}),
    "runs beside": (["train/a.parquet", "runs/r/datasets/a/p/shard_0.parquet"], {"train": 1}),
}


@pytest.mark.parametrize(("names", "expected"), TREES.values(), ids=TREES)
def test_trees_that_say_one_thing(tmp_path: Path, names: list[str], expected: dict[str, int]) -> None:
    for number, name in enumerate(names):
        write_shard(tmp_path / name, packed_rows(2, seed=number))
    assert {split: len(files) for split, files in splits_of(tmp_path).items()} == expected


UNCLEAR = {
    "two folders": (["a/x.parquet", "b/y.parquet"], "belong to no known split"),
    "splits and train": (["splits/train/a.parquet", "train/b.parquet"], "both splits/ and train"),
    "two names": (["valid/a.parquet", "validation/b.parquet", "train/c.parquet"], "could all be the valid split"),
    "folder and file": (["train/a.parquet", "train.parquet"], "could all be the train split"),
    "loose beside": (["train/a.parquet", "b.parquet"], "belong to none"),
    "folder beside": (["train/a.parquet", "extra/b.parquet"], "belong to none"),
    "nested": (["train/valid/a.parquet"], "in the folder of split train"),
    "unfinished recipe": (["runs/r/datasets/a/p/shard_0.parquet"], "belong to no known split"),
    "nothing": ([], "neither"),
}


@pytest.mark.parametrize(("names", "problem"), UNCLEAR.values(), ids=UNCLEAR)
def test_trees_that_could_mean_two_things_are_refused(tmp_path: Path, names: list[str], problem: str) -> None:
    for number, name in enumerate(names):
        write_shard(tmp_path / name, packed_rows(2, seed=number))
    with pytest.raises(DataError, match=problem):
        split_files(tmp_path)


def test_links_that_leak_or_lead_nowhere_are_refused(tmp_path: Path) -> None:
    recipe_output(tmp_path)
    train, valid = tmp_path / "splits" / "train", tmp_path / "splits" / "valid"
    first = sorted(train.iterdir())[0]
    twice = valid / first.name
    twice.symlink_to(os.path.relpath(first.resolve(), valid))
    with pytest.raises(DataError, match="same file"):
        split_files(tmp_path)
    twice.unlink()
    twice.symlink_to("nowhere.parquet")
    with pytest.raises(DataError, match="broken link"):
        split_files(tmp_path)
    twice.unlink()
    stale = tmp_path / "runs" / "fedcba9876543210" / "datasets" / "gamma" / "plan" / "shard_000000.parquet"
    write_shard(stale, packed_rows(2, seed=9))
    (train / "000099__gamma__shard_000000.parquet").symlink_to(stale)
    with pytest.raises(DataError, match="2 preparations"):
        split_files(tmp_path)


FORMS: dict[str, Any] = {
    "bool": (pa.list_(pa.int32()), pa.list_(pa.bool_())),
    "int64": (pa.list_(pa.int64()), pa.list_(pa.int64())),
    "large": (pa.large_list(pa.int32()), pa.large_list(pa.uint8())),
    "float": (pa.list_(pa.uint16()), pa.list_(pa.float32())),
    "fixed": (pa.list_(pa.int32(), 48), pa.list_(pa.uint8(), 48)),
}


@pytest.mark.parametrize("form", FORMS)
def test_columns_of_any_form_give_the_same_rows(tmp_path: Path, form: str) -> None:
    rows = packed_rows(5, seed=1, exactly=48)
    write_shard(tmp_path / "a" / "train.parquet", rows)
    write_shard(tmp_path / "b" / "train.parquet", rows, types=FORMS[form])
    plain, other = (PackedSet.open(tmp_path / name, trust_foreign=True) for name in "ab")
    assert plain.metadata["content_key"] == other.metadata["content_key"]
    assert plain.row_squares("train").tolist() == other.row_squares("train").tolist()
    for index in range(5):
        left, right = plain.row("train", index), other.row("train", index)
        assert left.input_ids.tolist() == right.input_ids.tolist() == rows[index]["input_ids"]
        assert left.loss_mask.tolist() == right.loss_mask.tolist() == rows[index]["loss_mask"]
        assert left.seq_start_id.tolist() == right.seq_start_id.tolist() == rows[index]["seq_start_id"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "not rolled": ({"loss_mask": [0, 1, 1, 1]}, "must be shifted left by one"),
    "weights": ({"loss_mask": [0, 2, 1, 0]}, "values other than 0 and 1"),
    "uneven": ({"loss_mask": [0, 1, 0]}, "loss_mask and input_ids differ in length"),
    "negative": ({"input_ids": [1, -100, 3, 4]}, "negative ids"),
    "starts": ({"seq_start_id": [0, 4]}, "seq_start_id"),
    "starts fall": ({"seq_start_id": [0, 2, 1]}, "seq_start_id"),
    "starts late": ({"seq_start_id": [1]}, "seq_start_id"),
    "null": ({"input_ids": [1, None, 3, 4]}, "null values"),
    "no tokens": ({"input_ids": [], "loss_mask": [], "seq_start_id": []}, "no tokens"),
}


@pytest.mark.parametrize(("change", "problem"), BAD.values(), ids=BAD)
def test_rows_that_cannot_be_trained_on_are_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    good = {"input_ids": [1, 2, 3, 4], "loss_mask": [0, 1, 1, 0], "seq_start_id": [0]}
    rows = [good, {**good, **change}]
    write_shard(tmp_path / "train.parquet", rows, types=(pa.list_(pa.int32()), pa.list_(pa.int32())))
    with pytest.raises(DataError, match=rf"(?s)train\.parquet.*{problem}.*1 of 2 rows, first: row 1"):
        PackedSet.open(tmp_path, trust_foreign=True)


def test_what_is_no_packed_shard_is_named(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"input_ids": [[1]], "labels": [[1]]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column loss_mask is missing"):
        PackedSet.open(tmp_path, trust_foreign=True)
    parquet.write_table(pa.table({"input_ids": ["a"], "loss_mask": [[1]]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="input_ids is string"):
        PackedSet.open(tmp_path, trust_foreign=True)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        PackedSet.open(tmp_path, trust_foreign=True)


def test_trust_is_needed_and_lengths_and_ids_must_fit(tmp_path: Path, questions: Questions) -> None:
    recipe_output(tmp_path / "theirs")
    cfg = questions(5)
    cfg.seq_length, cfg.data.packed_dir = 64, str(tmp_path / "theirs")
    with pytest.raises(DataError, match=r"data\.trust_foreign=true"):
        open_existing(cfg)
    with pytest.raises(DataError, match=r"data\.trust_foreign=true"):
        prepare(cfg)
    cfg.data.trust_foreign = True
    packed = open_existing(cfg)
    assert packed is not None
    assert sum(share.rows for share in train_rows(packed, cfg).shares) == packed.num_rows("train")
    assert prepare(cfg).metadata["content_key"] == packed.metadata["content_key"]
    cfg.seq_length = 128
    with pytest.raises(SeqLengthMismatchError, match="seq_length=64"):
        open_existing(cfg)
    (tmp_path / "theirs" / "metadata.json").unlink()  # nobody says what they were packed for
    assert open_existing(cfg) is not None
    cfg.seq_length = 32
    with pytest.raises(SeqLengthMismatchError, match="do not fit"):
        open_existing(cfg)
    cfg.seq_length, cfg.data.force = 64, True
    with pytest.raises(ConfigError, match="cannot be repacked"):
        prepare(cfg)
    cfg.data.force = False
    write_shard(tmp_path / "big" / "train.parquet", packed_rows(2, seed=0, vocabulary=10**6))
    cfg.data.packed_dir = str(tmp_path / "big")
    with pytest.raises(TokenizerMismatchError, match="tokenizer_mismatch"):
        open_existing(cfg)
    with pytest.raises(MissingPackedDataError):
        PackedSet.open(tmp_path / "nothing", trust_foreign=True)


def test_a_run_goes_through_and_says_what_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, then every other runner, on the recipe's output as it is."""

    def cli(*arguments: str) -> str:
        assert command(arguments) == 0
        return capsys.readouterr().out

    recipe_output(tmp_path / "theirs")
    said = [
        "model=tiny",
        f"data.packed_dir={tmp_path / 'theirs'}",
        "data.trust_foreign=true",
        "seq_length=64",
        "name=run",
    ]
    said += ["train.train_iters=2", "train.global_batch_size=4", "logger=tensorboard", f"output_dir={tmp_path / 'out'}"]
    assert "unknown: template" in cli(*said, "dry_run=true")
    assert "unknown" in cli(*said)
    run = tmp_path / "out" / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["lineage"]["packed by"].startswith("another tool")
    assert len(summary["lineage"]["content key"]) == 16
    assert "unknown" in (run / "report.html").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/alpha", "loss/beta", "val/loss/alpha"} <= {key for line in lines for key in line}
    assert "trained" in cli(*said, "runner=inspect", "inspect.count=1", "inspect.html=true")
    assert "packed by another tool" in cli(*said, "runner=data_prep")
    for runner in ("evaluate", "export"):
        cli(*said, f"runner={runner}")
    cli(*said, "runner=generate", "generate.prompts=[hello]", "generate.max_new_tokens=2")
