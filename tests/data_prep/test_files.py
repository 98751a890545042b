"""A file is read whole and right, or it is an error, or it is listed as not read."""

import codecs
import gzip
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet
from support.chats import all_sequences, data_cfg, question, user, write_jsonl

from sft_hydra.data_prep.fingerprint import count_rows, fingerprint_inputs, line_offsets
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.data_prep.sources import Source, files_of, listing_of, read_rows
from sft_hydra.errors import DataError
from sft_hydra.runners.data_prep import notes
from sft_hydra.schema.data import SourceConfig

ROWS = [question(number) for number in range(12)]


def rows_of(path: Path, **options: Any) -> list[Any]:
    source = Source("s", SourceConfig(path=str(path), **options))
    found = []
    for file in files_of(source):
        (seen,) = fingerprint_inputs([(file, source)])
        rows = list(read_rows(file, source, 0, None))
        assert count_rows(file, source, seen) == len(rows)
        (offset,) = line_offsets(file, [5], seen)
        assert list(read_rows(file, source, 5, 8, offset)) == rows[5:8]
        found += [row for _, row in rows]
    return found


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.JSONL", "a.jsonl.gz", "a.JSON.GZ", "a.jsonl.zst"])
@pytest.mark.parametrize(
    ("encoding", "bom"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
def test_every_encoding_and_layout_gives_the_same_rows(
    tmp_path: Path, name: str, encoding: str, bom: bytes, array: bool
) -> None:
    text = json.dumps(ROWS, indent=1, ensure_ascii=False) if array else "\n".join(map(json.dumps, ROWS)) + "\n"
    data = bom + text.replace("\n", "\r\n").encode(encoding)
    if name.lower().endswith(".zst"):
        with pa.CompressedOutputStream(str(tmp_path / name), "zstd") as stream:
            stream.write(data)
    else:
        (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    assert rows_of(tmp_path / name) == ROWS


def test_a_list_on_one_line_is_a_row_or_all_rows(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(json.dumps(ROWS))
    assert rows_of(tmp_path / "all.jsonl") == ROWS
    (tmp_path / "talk.jsonl").write_text(json.dumps(ROWS[0]["messages"]) + "\n")
    source = Source("s", SourceConfig(path=str(tmp_path / "talk.jsonl")))
    assert list(read_rows(files_of(source)[0], source, 0, None)) == [(0, ROWS[0]["messages"])]


def test_a_broken_array_is_refused_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[\n" + ",\n".join(map(json.dumps, ROWS)) + ",\n]\n")
    with pytest.raises(DataError, match=r"a.jsonl: not a JSON array"):
        rows_of(tmp_path / "a.jsonl")


def test_upper_case_packed_files_lose_no_row_in_shards(tmp_path: Path) -> None:
    rows = [question(number) for number in range(60)]
    plain = write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.JSONL.GZ").write_bytes(gzip.compress(plain.read_bytes()))
    found = []
    for name in ("a.jsonl", "b.JSONL.GZ"):
        cfg = data_cfg(tmp_path / name.replace(".", "_"), rows=tmp_path / name)
        cfg.data.num_shards = 4
        packed = prepare(cfg)
        assert packed.metadata["sources"][0]["kept"] == 60
        found.append(sorted(map(str, all_sequences(packed))))
    assert found[0] == found[1]


def test_a_folder_tells_what_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    elsewhere = write_jsonl(tmp_path / "elsewhere" / "b.jsonl", ROWS[6:])
    write_jsonl(folder / "a.jsonl", ROWS[:6])
    (folder / "linked.jsonl").symlink_to(elsewhere)
    (folder / "folder").symlink_to(elsewhere.parent)
    (folder / "nothing.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (folder / "rows.csv").write_text("a,b\n")
    os.mkfifo(folder / "pipe.jsonl")
    found = listing_of(Source("s", SourceConfig(path=str(folder))))
    assert [Path(file.path).name for file in found.files] == ["a.jsonl", "linked.jsonl"]
    why = {Path(path).name: reason for path, reason in found.not_read.items()}
    assert why == {
        "folder": "link to a folder",
        "nothing.jsonl": "broken link",
        "rows.csv": "not .jsonl, .json or .parquet",
        "pipe.jsonl": "not a file",
    }
    packed = prepare(data_cfg(tmp_path / "out", rows=folder))
    assert packed.metadata["sources"][0]["not_read"] == found.not_read
    assert any("rows.csv" in line and "not read" in line for line in notes(packed))


def test_saved_data_sets_are_read_by_their_library(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one.select(range(8)), "extra": one.select(range(8, 12))}).save_to_disk(
        tmp_path / "two"
    )
    assert rows_of(tmp_path / "one") == ROWS
    assert rows_of(tmp_path / "two") == ROWS[:8]
    assert [row for _, row in read_saved(tmp_path / "two", "extra")] == ROWS[8:]
    listed = listing_of(Source("s", SourceConfig(path=str(tmp_path / "two"))))
    assert list(listed.not_read.values()) == ["not the split train"]
    assert prepare(data_cfg(tmp_path / "out", rows=tmp_path / "one")).metadata["sources"][0]["kept"] == 12


def read_saved(folder: Path, split: str) -> list[Any]:
    source = Source("s", SourceConfig(path=str(folder), split=split))
    return list(read_rows(files_of(source)[0], source, 0, None))


def test_a_column_that_is_not_used_cannot_fail_a_row(tmp_path: Path) -> None:
    count = len(ROWS)
    table = pa.Table.from_pylist(ROWS)
    table = table.append_column("took", pa.array(range(count), pa.duration("ns")))
    table = table.append_column("at", pa.array([2**62 + i for i in range(count)], pa.timestamp("us")))
    table = table.append_column("span", pa.array([timedelta(days=1)] * count))
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    found = rows_of(tmp_path / "a.parquet")
    assert [row["messages"] for row in found] == [row["messages"] for row in ROWS]
    packed = prepare(data_cfg(tmp_path / "out", rows=tmp_path / "a.parquet"))
    assert packed.metadata["sources"][0]["kept"] == count
    assert packed.metadata["sources"][0]["unread"]["at"] == count


TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Books a room",
        "parameters": {
            "type": "object",
            "properties": {"day": {"type": "string"}, "until": {"type": "string"}, "note": {"type": "string"}},
            "required": ["day", "until"],
        },
    },
}


@pytest.mark.parametrize("kind", ["jsonl", "text", "parquet", "saved", "json_column"])
def test_a_null_that_a_call_needs_survives(tmp_path: Path, kind: str) -> None:
    arguments: list[Any] = [{"day": "Monday", "until": None}, {"day": "Friday", "until": "noon", "note": "late"}]
    calls = [{"type": "function", "function": {"name": "book", "arguments": given}} for given in arguments]
    if kind == "text":
        calls = [{"type": "function", "function": {"name": "book", "arguments": json.dumps(a)}} for a in arguments]
    rows = [
        {"messages": [user("Book"), {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [TOOL]}
        for call in calls
    ]
    path = tmp_path / ("a.parquet" if kind == "parquet" else "rows")
    if kind in ("jsonl", "text"):
        path = write_jsonl(tmp_path / "a.jsonl", rows)
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        features = datasets.Features({"messages": datasets.Json(), "tools": datasets.Json()})
        datasets.Dataset.from_list(rows, features=features).save_to_disk(path)
    source = Source("s", SourceConfig(path=str(path)))
    found = [row for file in files_of(source) for _, row in read_rows(file, source, 0, None)]
    read = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in found]
    assert [json.loads(given) if isinstance(given, str) else given for given in read] == arguments
