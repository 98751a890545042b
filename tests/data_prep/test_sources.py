"""Rows come from every kind of file, one by one, with their place; the kind of file changes no token."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from support.chats import all_sequences, assistant, call, data_cfg, question, rejects, result, shapes, user, write_jsonl

from sft_hydra.data_prep.fingerprint import BLOCK, count_rows, fingerprint_inputs, line_offsets
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.data_prep.sources import MalformedRow, Source, files_of, read_rows, sources_of
from sft_hydra.errors import ConfigError, DataError
from sft_hydra.schema.data import DataConfig, SourceConfig


def rows_of(path: Path | str, **options: Any) -> list[Any]:
    source = Source("s", SourceConfig(path=str(path), **options))
    return [row for file in files_of(source) for _, row in read_rows(file, source, 0, None)]


ROWS = [question(number) for number in range(20)]


def write_zst(path: Path, data: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(data)


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    write_zst(tmp_path / "a.jsonl.zst", plain.read_bytes())
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=7)
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet"):
        assert rows_of(tmp_path / name) == ROWS, name


def test_ranges_of_rows_are_read_from_any_kind(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet", row_group_size=6)
    source = Source("s", SourceConfig(path=str(tmp_path)))
    for file in files_of(source):
        (seen,) = fingerprint_inputs([(file, source)])
        assert count_rows(file, source, seen) == 20
        (offset,) = line_offsets(file, [7], seen)
        assert list(read_rows(file, source, 7, 13, offset)) == [(i, ROWS[i]) for i in range(7, 13)]


@pytest.mark.parametrize("width", [900, BLOCK // 8])  # the second: line ends fall on the ends of blocks
def test_line_offsets_reach_over_blocks(tmp_path: Path, width: int) -> None:
    path = tmp_path / "big.jsonl"
    rows = 10 * BLOCK // width
    path.write_bytes(b"".join(b'{"x": "%0*d"}\n' % (width - 10, number) for number in range(rows)).removesuffix(b"\n"))
    source = Source("s", SourceConfig(path=str(path)))
    (file,) = files_of(source)
    (seen,) = fingerprint_inputs([(file, source)])
    assert seen.identity == hashlib.sha256(path.read_bytes()).hexdigest()
    assert count_rows(file, source, seen) == rows
    wanted = [0, 1, *range(5, rows, max(1, rows // 60)), rows - 1]
    for row, offset in zip(wanted, line_offsets(file, wanted, seen), strict=True):
        (found,) = read_rows(file, source, row, row + 1, offset)
        assert (found[0], int(found[1]["x"][-6:])) == (row, row)


def test_folders_and_globs(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x" / "b.jsonl", ROWS[10:])
    write_jsonl(tmp_path / "x" / "a.jsonl", ROWS[:10])
    (tmp_path / "x" / "notes.txt").write_text("not data")
    assert rows_of(tmp_path / "x") == ROWS
    assert rows_of(tmp_path / "x" / "*.jsonl") == ROWS
    assert rows_of(tmp_path / "*" / "a.*") == ROWS[:10]


def test_lines_that_are_odd(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    good = json.dumps(ROWS[0]).encode()
    path.write_bytes(
        b"\xef\xbb\xbf" + good + b"\r\n\n  \n{broken\n" + good[:-1] + b', "score": NaN}\n\xff\xfe\n' + good
    )
    found = rows_of(path)
    assert [isinstance(row, MalformedRow) for row in found] == [False, True, False, True, False]
    assert found[0] == ROWS[0]
    assert found[2]["messages"] == ROWS[0]["messages"]


def test_lines_that_are_lists_of_messages(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    path.write_text("".join(json.dumps(row["messages"]) + "\n" for row in ROWS))
    assert rows_of(path) == [row["messages"] for row in ROWS]


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("missing.jsonl", "does not exist or contains no input files"),
        ("notes.txt", "is not a .jsonl"),
        ("none-*.jsonl", "does not exist or contains no input files"),
        ("empty", "nothing"),
    ],
)
def test_paths_that_give_nothing_are_told(tmp_path: Path, path: str, match: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=match):
        rows_of(tmp_path / path)


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.parquet", "cut.jsonl.zst"])
def test_broken_files_are_told_with_their_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"x" * 5000)[:20] if name.endswith("gz") else b"nonsense")
    with pytest.raises(DataError, match=name):
        rows_of(tmp_path / name)


def test_blend_files(tmp_path: Path) -> None:
    blend = tmp_path / "blend.json"
    blend.write_text(
        json.dumps({"datasets": [{"name": "a", "path": "a.jsonl", "weight": 0.3}, {"name": "b", "path": "b"}]})
    )
    first, second = sources_of(DataConfig(blend=str(blend)))
    assert (first.name, first.config.path, first.config.weight) == ("a", "a.jsonl", 0.3)
    assert (second.name, second.config.weight) == ("b", None)


def test_all_mistakes_of_a_blend_file_are_told_at_once(tmp_path: Path) -> None:
    blend = tmp_path / "blend.json"
    entries = [
        {"name": "a", "path": "x"},
        {"name": "a", "path": "y"},
        {"name": "c"},
        {"name": "d", "path": "z", "wieght": 1},
    ]
    blend.write_text(json.dumps({"datasets": entries}))
    with pytest.raises(ConfigError) as caught:
        sources_of(DataConfig(blend=str(blend)))
    text = str(caught.value)
    assert all(words in text for words in ("duplicate name 'a'", "datasets[2] needs", "wieght"))
    with pytest.raises(ConfigError, match="no data"):
        sources_of(DataConfig())


def test_jsonl_and_parquet_give_the_same_tokens(tmp_path: Path) -> None:
    rows = [*shapes().values(), *ROWS]
    other = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    }
    rows.append({"messages": [user("x"), call(name="f", n=3), result("4"), assistant("done")], "tools": [other]})
    lines = write_jsonl(tmp_path / "a.jsonl", rows)
    table = pa.Table.from_struct_array(pa.array(rows))
    assert "null" in json.dumps(table.to_pylist())  # Arrow has filled the union of all keys
    parquet.write_table(table, tmp_path / "a.parquet")
    found = [
        all_sequences(prepare(data_cfg(tmp_path / str(i), a=path)))
        for i, path in enumerate((lines, tmp_path / "a.parquet"))
    ]
    assert found[0] == found[1]


def test_a_hub_data_set_is_read_by_its_card(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    write_jsonl(repository / "data" / "train.jsonl", ROWS[:12])
    write_jsonl(repository / "data" / "extra.jsonl", ROWS[12:])
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: data/train.jsonl\n"
        "  - split: extra\n    path: data/extra.jsonl\n---\n"
    )
    assert rows_of(repository, subset="main", split="train") == ROWS[:12]
    assert rows_of(repository, subset="main", split="extra") == ROWS[12:]
    with pytest.raises(DataError, match="available: extra, main, train"):
        rows_of(repository, subset="main", split="nothing")
    packed = prepare(data_cfg(tmp_path / "out", repo=SourceConfig(path=str(repository), subset="main", split="train")))
    assert packed.metadata["sources"][0]["kept"] == 12
    assert not rejects(packed)
