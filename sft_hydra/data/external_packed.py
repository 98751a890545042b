"""Reads packed Parquet files of other tools, which have no metadata of ours.

`read_foreign` returns metadata with the same keys as our own sets. Values that only the packer knew (rows read and rejected,
tokenizer, template) are None. Every row is checked for what training relies on.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from sft_hydra.data.external_tree import split_files
from sft_hydra.data.lengths import percentiles
from sft_hydra.errors import DataError

LINK_NAME = re.compile(r"\d+__(.+)__shard_\d+")  # names of links in the splits of the Nemotron recipe
ROWS_AT_ONCE = 256
UNKNOWN_OF_SOURCE = (
    *("rows", "kept", "rejected", "rejects", "dropped_sequences", "truncated", "cut_at_turn"),
    *("cut_documents", "guarded", "bare_headers", "left_out", "conversations"),
)


@dataclass(slots=True)
class _Shard:
    """Summary of one file. `index` is (rows, 3): tokens, supervised tokens, source of each packed row."""

    split: str
    path: Path
    source: str
    index: NDArray[np.int64]
    lengths: NDArray[np.int64]
    highest: int
    problems: list[str] = field(default_factory=list)


def read_foreign(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:
    """Metadata and row index of a folder of packed Parquet files. DataError if the split of a file is ambiguous,
    or if rows cannot be used (all such files are listed)."""
    digest = hashlib.sha256()
    shards = [_read(path, split, folder, digest) for split, files in split_files(folder).items() for path in files]
    problems = [problem for shard in shards for problem in shard.problems]
    if problems:
        raise DataError(*problems)
    if not sum(int(shard.index[:, 1].sum()) for shard in shards if shard.split == "train"):
        raise DataError(f"{folder}: the train split has no supervised tokens")
    names = list(dict.fromkeys(shard.source for shard in shards))
    for shard in shards:
        shard.index[:, 2] = names.index(shard.source)
    rows = {
        split: np.concatenate([np.zeros((0, 3), np.int64), *(s.index for s in shards if s.split == split)])
        for split in ("train", "valid", "test")
    }
    return _metadata(folder, shards, names, digest.hexdigest()[:16]), rows


def _metadata(folder: Path, shards: list[_Shard], names: list[str], key: str) -> dict[str, Any]:
    packer_metadata = _packer_metadata(folder)
    longest = max(int(shard.index[:, 0].max(initial=0)) for shard in shards)
    splits = {split: _totals([s for s in shards if s.split == split], longest) for split in ("train", "valid", "test")}
    sources = [_source(folder, name, [s for s in shards if s.source == name]) for name in names]
    everything = sum(source["tokens"] for source in sources)
    for source in sources:
        source["token_share"] = source["tokens"] / everything
    return {
        "format_version": None,
        "foreign": True,
        "content_key": key,
        "pack_size": packer_metadata.get("pack_size"),
        "longest_row": longest,
        "highest_id": max(shard.highest for shard in shards),
        "algorithm": None,
        "efficiency": None,
        "splits": splits,
        "sources": sources,
        "rows": None,
        "rejected": None,
        "tokens": everything,
        "trained_tokens": sum(source["trained_tokens"] for source in sources),
        "seed": None,
        "tokenizer": {"path": packer_metadata.get("tokenizer_uri"), "fingerprint": None, "library": None},
        "inputs": [],
        "timings": None,
        "shards": [
            {
                "file": str(shard.path.relative_to(folder)),
                "split": shard.split,
                "source": names.index(shard.source),
                "rows": len(shard.index),
                "bytes": shard.path.stat().st_size,
                "sha256": None,
            }
            for shard in shards
        ],
    }


def _packer_metadata(folder: Path) -> dict[str, Any]:
    """`pack_size` and `tokenizer_uri` of the recipe's metadata.json, if valid."""
    beside = (folder, folder / "splits", folder.parent) if folder.name == "splits" else (folder, folder / "splits")
    found: dict[str, Any] = {}
    for place in beside:
        try:
            content = json.loads((place / "metadata.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            if type(content.get("pack_size")) is int:
                found.setdefault("pack_size", content["pack_size"])
            if isinstance(content.get("tokenizer_uri"), str):
                found.setdefault("tokenizer_uri", content["tokenizer_uri"])
    return found


def _totals(shards: list[_Shard], longest: int) -> dict[str, Any]:
    rows, tokens = sum(len(shard.index) for shard in shards), sum(int(s.index[:, 0].sum()) for s in shards)
    return {
        "rows": rows,
        "sequences": sum(len(shard.lengths) for shard in shards),
        "tokens": tokens,
        "trained_tokens": sum(int(shard.index[:, 1].sum()) for shard in shards),
        "shards": len(shards),
        "efficiency": tokens / (rows * longest) if rows and longest else 0.0,
    }


def _source(folder: Path, name: str, shards: list[_Shard]) -> dict[str, Any]:
    return {
        "name": name,
        "path": str(folder),
        **dict.fromkeys(UNKNOWN_OF_SOURCE),
        "sequences": sum(len(shard.lengths) for shard in shards),
        "tokens": sum(int(shard.index[:, 0].sum()) for shard in shards),
        "trained_tokens": sum(int(shard.index[:, 1].sum()) for shard in shards),
        "packed_rows": sum(len(shard.index) for shard in shards),
        "lengths": percentiles(np.concatenate([shard.lengths for shard in shards])),
    }


def _source_name(path: Path, folder: Path) -> str:
    """Data set of a shard by the recipe's naming, else the name of the folder."""
    if match := LINK_NAME.fullmatch(path.stem):
        return match[1]
    parts = path.resolve().parts
    if len(parts) > 4 and parts[-4] == "datasets":
        return parts[-3]
    return folder.resolve().name


def _read(path: Path, split: str, folder: Path, digest: Any) -> _Shard:
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        missing = {"input_ids", "loss_mask"} - set(names)
        if missing:
            raise DataError(f"{path}: column {', '.join(sorted(missing))} is missing; not a packed shard")
        wanted = [name for name in ("input_ids", "loss_mask", "seq_start_id") if name in names]
        wrong = [n for n in wanted if not _holds_numbers(file.schema_arrow.field(n).type, mask=n == "loss_mask")]
        if wrong:
            kinds = ", ".join(f"{name} is {file.schema_arrow.field(name).type}" for name in wrong)
            raise DataError(f"{path}: {kinds}; a packed shard has a list of integers in each row")
        parts = [_read_batch(batch, digest) for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted)]
    except (OSError, pa.ArrowException) as problem:
        raise DataError(f"{path}: cannot be read as Parquet ({problem})") from None
    index = np.concatenate([np.zeros((0, 3), np.int64), *(part[0] for part in parts)])
    lengths = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
    shard = _Shard(split, path, _source_name(path, folder), index, lengths, max((p[2] for p in parts), default=-1))
    for kind in PROBLEMS:
        bad = np.concatenate([np.zeros(0, bool), *(part[3][kind] for part in parts)])
        if bad.any():
            shard.problems.append(
                f"{path}: {kind} ({int(bad.sum()):,} of {len(bad):,} rows, first: row {int(bad.argmax())})"
            )
    return shard


def _holds_numbers(kind: Any, *, mask: bool) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    value = kind.value_type
    return pa.types.is_integer(value) or (mask and (pa.types.is_boolean(value) or pa.types.is_floating(value)))


NULLS, EMPTY = "null values", "no tokens"
UNEVEN = "loss_mask and input_ids differ in length"
NEGATIVE, VALUES = "negative ids", "loss_mask has values other than 0 and 1"
STARTS = "seq_start_id must start at 0 and increase to less than the number of tokens"
NOT_ROLLED = (
    "loss_mask is 1 at the last token of a conversation; it must be shifted left by one within each conversation, so that "
    "position j states whether token j + 1 is supervised"
)
PROBLEMS = (NULLS, EMPTY, UNEVEN, NEGATIVE, VALUES, STARTS, NOT_ROLLED)


def _read_batch(batch: pa.RecordBatch, digest: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], int, dict[str, Any]]:
    """(index, lengths of sequences, highest id, {problem: (rows,) bool}) of some rows. Later checks skip rows with
    earlier problems."""
    rows = batch.num_rows
    bad = {kind: np.zeros(rows, bool) for kind in PROBLEMS}
    for column in batch.columns:
        bad[NULLS] |= np.asarray(column.is_null()) | (_sums(pc.is_null(column.flatten()), _lengths(column)) > 0)
    ids, mask = batch.column("input_ids"), batch.column("loss_mask")
    tokens = _lengths(ids)
    bad[EMPTY] = tokens == 0
    bad[UNEVEN] = _lengths(mask) != tokens
    index = np.zeros((rows, 3), np.int64)
    index[:, 0] = tokens
    if (bad[NULLS] | bad[EMPTY] | bad[UNEVEN]).any():
        return index, tokens, -1, bad
    values = ids.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    raw = mask.flatten().to_numpy(zero_copy_only=False)
    trained = raw != 0
    bad[NEGATIVE] = _sums(values < 0, tokens) > 0
    bad[VALUES] = _sums((raw != 0) & (raw != 1), tokens) > 0
    index[:, 1] = _sums(trained, tokens)
    starts, counts = _starts(batch, rows)
    firsts = np.cumsum(counts) - counts
    row_of = np.repeat(np.arange(rows), counts)
    follows = np.append(starts[1:], 0)
    full = counts > 0
    follows[(firsts + counts - 1)[full]] = tokens[full]
    bad[STARTS] = ~full | (_sums(follows <= starts, counts) > 0)
    bad[STARTS][full] |= starts[firsts[full]] != 0
    digest.update(values.astype("<i8").tobytes() + np.packbits(trained).tobytes() + starts.astype("<i8").tobytes())
    digest.update(tokens.astype("<i8").tobytes())
    if bad[STARTS].any():
        return index, tokens, int(values.max()), bad
    ends = (np.cumsum(tokens) - tokens)[row_of] + follows - 1
    bad[NOT_ROLLED] = _sums(trained[ends], counts) > 0
    return index, follows - starts, int(values.max()), bad


def _lengths(column: pa.Array) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def _starts(batch: pa.RecordBatch, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Concatenated starts of sequences and their number per row; without the column a row is one sequence."""
    if "seq_start_id" not in batch.schema.names:
        return np.zeros(rows, np.int64), np.ones(rows, np.int64)
    column = batch.column("seq_start_id")
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.int64), _lengths(column)


def _sums(values: Any, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of each row of concatenated values."""
    total = np.append(0, np.cumsum(np.asarray(values), dtype=np.int64))
    ends = np.cumsum(lengths)
    found: NDArray[np.int64] = total[ends] - total[ends - lengths]
    return found
