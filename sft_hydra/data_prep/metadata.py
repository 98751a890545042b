"""The metadata of a packed set (`build_metadata`) and the files beside its shards (`write_set`)."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data.lengths import percentiles
from sft_hydra.data.shard_file import checksum, make_durable
from sft_hydra.data.shards import FORMAT_VERSION, SPLITS, PackedSet
from sft_hydra.data.splits import LEFT_OUT
from sft_hydra.data_prep.blend import plan_epoch
from sft_hydra.data_prep.plan import Plan
from sft_hydra.data_prep.token_store import read_token_store
from sft_hydra.errors import DataError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import DataFormat

SHOWN_REFUSALS = 20


def build_metadata(
    plan: Plan,
    tokenizer: ChatTokenizer,
    library: str,
    cfg: SftConfig,
    spools: list[Path],
    splits: list[Any],
    entries: list[Any],
) -> dict[str, Any]:
    """The content of metadata.json without timings. `entries`: those that `WorkerPool.pack` returned. DataError if the train
    split is empty."""
    per_split = {split: _totals([e for e in entries if e["split"] == split], plan.seq_length) for split in SPLITS}
    if not per_split["train"]["rows"]:
        raise DataError("the train split is empty: all conversations were rejected or belong to other splits")
    sources = [_source(plan, index, spools, splits, entries) for index in range(len(plan.sources))]
    everything = sum(source["tokens"] for source in sources)
    for source in sources:
        source["token_share"] = source["tokens"] / everything
    return {
        "format_version": FORMAT_VERSION,
        "content_key": plan.key,
        "pack_size": plan.seq_length,
        "algorithm": plan.data.packing.value,
        "efficiency": per_split["train"]["efficiency"],
        "splits": per_split,
        "sources": sources,
        "rows": sum(source["rows"] for source in sources),
        "rejected": sum(source["rejected"] for source in sources),
        "tokens": everything,
        "trained_tokens": sum(source["trained_tokens"] for source in sources),
        "seed": plan.seed,
        "tokenizer": {
            "path": cfg.tokenizer.path or cfg.model.path or "demo",
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "library": library,
            "end_of_turn_ids": tokenizer.end_of_turn_ids,
            "end_of_turn_strings": tokenizer.end_of_turn_strings,
            "template": tokenizer.template,
            "named_templates": tokenizer.named,
            "template_kwargs": tokenizer.template_kwargs,
            "template_time": plan.now,
        },
        "inputs": plan.inputs,
        "shards": [{key: value for key, value in entry.items() if key != "index"} for entry in entries],
    }


def write_set(
    folder: Path,
    plan: Plan,
    spools: list[Path],
    splits: list[Any],
    entries: list[Any],
    metadata: dict[str, Any],
    format_: DataFormat,
) -> None:
    """Write the row indexes, rejects.jsonl and, last, metadata.json with the blend of the current config."""
    rows = {}
    for split in SPLITS:
        indexes = [entry["index"] for entry in entries if entry["split"] == split]
        rows[split] = np.concatenate([np.zeros((0, 3), np.int64), *indexes])
        if indexes:
            np.save(folder / split / "rows.npy", rows[split])
            metadata["splits"][split]["rows_sha256"] = checksum(folder / split / "rows.npy")
    metadata["blend"] = [asdict(share) for share in plan_epoch(PackedSet(folder, metadata, rows), plan.data)]
    with open(folder / "rejects.jsonl", "wb") as stream:
        for spool in spools:
            stream.write((spool / "rejects.jsonl").read_bytes())
        for shard, spool, assigned in zip(plan.shards, spools, splits, strict=True):
            rows = np.load(spool / "rows.npy")
            for row in rows[assigned == LEFT_OUT]:
                origin = f"{shard.ranges[row['range']].file.path}:{row['number'] + 1}"
                entry = {
                    "origin": origin,
                    "source": plan.sources[shard.source].name,
                    "reason": "repeated",
                    "detail": "",
                }
                stream.write(json.dumps(entry).encode() + b"\n")
    if format_ is DataFormat.npy:
        from sft_hydra.data_prep.npy import write_npy

        write_npy(folder, entries)
    temporary = folder / "metadata.tmp"
    temporary.write_text(json.dumps(metadata, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    make_durable([*(folder / entry["file"] for entry in entries), temporary])
    os.replace(temporary, folder / "metadata.json")


def _totals(entries: list[Any], pack_size: int) -> dict[str, Any]:
    totals = {key: sum(e[key] for e in entries) for key in ("rows", "sequences", "tokens", "trained_tokens")}
    full = totals["rows"] * pack_size
    return {**totals, "shards": len(entries), "efficiency": totals["tokens"] / full if full else 0.0}


def _source(plan: Plan, index: int, spools: list[Path], splits: list[Any], entries: list[Any]) -> dict[str, Any]:
    own = [i for i, shard in enumerate(plan.shards) if shard.source == index]
    opened = [read_token_store(spools[i]) for i in own]
    counts: dict[str, int] = {}
    for spool in opened:
        for key, value in spool.counts.items():
            counts[key] = counts.get(key, 0) + value
    assigned = np.concatenate([splits[i] for i in own])
    reasons = {key.removeprefix("rejected/"): n for key, n in sorted(counts.items()) if key.startswith("rejected/")}
    repeated = int((assigned == LEFT_OUT).sum())
    if repeated:
        reasons["repeated"] = repeated
    mine = [entry for entry in entries if entry["source"] == index]
    return {
        "name": plan.sources[index].name,
        "path": plan.sources[index].config.path,
        "not_read": plan.not_read[index],
        "rows": counts.get("rows", 0),
        "kept": len(assigned) - repeated,
        "rejected": sum(reasons.values()),
        "rejects": reasons,
        "dropped_sequences": counts.get("dropped_sequences/overlong", 0) + counts.get("dropped_sequences/truncated", 0),
        "truncated": counts.get("truncated", 0),
        "cut_at_turn": counts.get("cut_at_turn", 0),
        "cut_documents": counts.get("cut_documents", 0),
        "unread": {key.removeprefix("unread/"): n for key, n in sorted(counts.items()) if key.startswith("unread/")},
        "guarded": counts.get("guarded", 0),
        "bare_headers": counts.get("bare_headers", 0),
        "open_ends": counts.get("open_ends", 0),
        "apart": counts.get("apart", 0),
        "refused": _most(counts, "refused/"),
        "conversations": {split: int((assigned == number).sum()) for number, split in enumerate(SPLITS)},
        **{key: sum(entry[key] for entry in mine) for key in ("sequences", "tokens", "trained_tokens")},
        "packed_rows": sum(entry["rows"] for entry in mine),
        "lengths": percentiles(np.concatenate([spool.lengths for spool in opened])),
    }


def _most(counts: dict[str, int], prefix: str) -> dict[str, int]:
    """The SHOWN_REFUSALS most frequent counts whose names start with `prefix`, without it."""
    found = [(key.removeprefix(prefix), count) for key, count in counts.items() if key.startswith(prefix)]
    return dict(sorted(found, key=lambda entry: (-entry[1], entry[0]))[:SHOWN_REFUSALS])
