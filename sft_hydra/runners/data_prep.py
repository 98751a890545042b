"""runner=data_prep: prepares the packed set, with progress on the console and a table of the sources at the end."""

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.blend import plan_epoch
from sft_hydra.data_prep.prepare import open_or_prepare, prepare, prepare_part
from sft_hydra.data_prep.progress import Progress
from sft_hydra.observe.console import Console, Work
from sft_hydra.paths import RunPaths
from sft_hydra.process import signals
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.logger import LoggerConfig

SHOWN = 5  # unread files that are listed
UNKNOWN = "unknown"
COLUMNS = ("source", "rows", "kept", "rejected", "tokens", "trained", "p50", "p95", "longest", "packs", "blend")


def run(cfg: SftConfig) -> None:
    """Prepare the packed set unless it exists, and report it to the trackers; with `data.part`, tokenize only that part."""
    assert cfg.run_dir is not None
    paths = RunPaths(Path(cfg.run_dir))
    with Console(paths.log) as console:
        if cfg.data.part is not None:
            with signals.at_once(), console.work(f"tokenizing part {cfg.data.part} of {cfg.data.num_parts}") as work:
                prepare_part(cfg, lambda progress: _show(work, progress))
            return
        with signals.at_once(), console.work("preparing data") as work:
            packed = prepare(cfg, lambda progress: _show(work, progress))
        _tell(console, cfg, packed)
        if cfg.logger != LoggerConfig():
            _track(cfg, paths, console, packed)


def _track(cfg: SftConfig, paths: RunPaths, console: Console, packed: PackedSet) -> None:
    """Log the packed set as an artifact of this run. Trainings log the same artifact as input, which links the runs."""
    from sft_hydra.runners.tracking import (  # imports torch, which preparation does not need
        data_artifact,
        open_trackers,
    )

    with closing(open_trackers(cfg, paths, console, resume_step=0)) as trackers:
        trackers.made(data_artifact(cfg, packed))


def prepared_set(cfg: SftConfig, console: Console) -> PackedSet:
    """The packed set of a run: an existing one, or prepared now with progress on `console`. Raises subclasses of UserError."""
    with signals.at_once(), console.work("preparing data") as work:
        made: list[Progress] = []

        def show(progress: Progress) -> None:
            made.append(progress)
            _show(work, progress)

        packed = open_or_prepare(cfg, show)
    if made or packed.metadata.get("foreign"):
        _tell(console, cfg, packed)
    else:
        console.say(f"data: {packed.folder} (already prepared)")
    return packed


def _show(work: Work, now: Progress) -> None:
    if now.stage == "pack":
        work.update(now.shards, now.total_shards, f"packing, shard {now.shards} of {now.total_shards}")
        return
    work.update(
        now.rows,
        now.total_rows,
        f"{now.rows:,} of {now.total_rows:,} rows, {now.tokens / 1e6:.1f}M tokens, "
        f"{now.tokens_per_second / 1e6:.2f}M tokens/s, {now.rejected:,} rejected",
    )


def _tell(console: Console, cfg: SftConfig, packed: PackedSet) -> None:
    meta = packed.metadata
    shares = {share.name: share.token_share for share in plan_epoch(packed, cfg.data)}
    rows = [
        [
            source["name"],
            _count(source["rows"]),
            _count(source["kept"]),
            UNKNOWN
            if source["rejects"] is None
            else ", ".join(f"{count:,} {reason}" for reason, count in source["rejects"].items()) or "0",
            f"{source['tokens']:,}",
            f"{source['trained_tokens'] / max(source['tokens'], 1):.0%}",
            *(f"{source['lengths'].get(key, 0):,}" for key in ("p50", "p95", "p100")),
            f"{source['packed_rows']:,}",
            f"{shares[source['name']]:.1%}",
        ]
        for source in meta["sources"]
    ]
    console.table("data", COLUMNS, rows)
    for line in notes(packed):
        console.say(line)
    splits = ", ".join(f"{split} {packed.num_rows(split):,}" for split in ("train", "valid", "test"))
    made = (
        "packed by another tool"
        if meta.get("foreign")
        else f"with {meta['tokenizer']['library']} in {meta['timings']['total_seconds']:.1f} s"
    )
    console.say(
        f"{splits} rows of {cfg.seq_length:,} tokens, {packed.fill(cfg.seq_length):.2%} full, "
        f"{meta['tokens'] / 1e6:.1f}M tokens {made}: {packed.folder}"
    )


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _about_template(meta: dict[str, Any]) -> list[str]:
    """How turns match the serving prompt of the chat template, in one line; empty if unknown."""
    if meta["tokenizer"].get("template") is None:
        return []
    sources = meta["sources"]
    sequences, apart, bare, ends = (
        sum(source.get(key, 0) for source in sources) for key in ("sequences", "apart", "bare_headers", "open_ends")
    )
    parts = [f"{sequences:,} sequences checked against the generation prompt"]
    parts += [
        f"{apart:,} of them split into one turn each, because the template does not render history as served"
    ] * bool(apart)
    parts += [f"{bare:,} turns differ from the generation prompt; only the role header is masked"] * bool(bare)
    parts += [f"{ends:,} turns have no end-of-turn token in this template"] * bool(ends)
    if strings := meta["tokenizer"].get("end_of_turn_strings"):
        shown = ", ".join(map(repr, strings))
        parts.append(
            f"turns of {sequences:,} sequences end with {shown}, which is not one token of this tokenizer: exports name it in "
            "stop_strings; tokenizer.add_special_tokens makes it a token"
        )
    refused = Counter[str]()
    for source in sources:
        refused.update(source.get("refused", {}))
    parts += [f"rejected {count:,} rows ({reason})" for reason, count in refused.most_common(3)]
    return [f"chat template: {'; '.join(parts)}"]


def notes(packed: PackedSet) -> list[str]:
    """Notes for the user about this set, one line each."""
    if packed.metadata.get("foreign"):
        return [f"{packed.folder}: packed by another tool. Unknown: {packed.unknown}"]
    found = _about_template(packed.metadata)
    for source in packed.metadata["sources"]:
        name = source["name"]
        if source["rejected"]:
            found.append(f"{name}: {source['rejected']:,} rows rejected, with reasons in {packed.folder}/rejects.jsonl")
        if source["truncated"]:
            found.append(
                f"{name}: {source['truncated']:,} sequences truncated; their last turn has no end-of-turn token"
            )
        if source["cut_at_turn"]:
            found.append(f"{name}: {source['cut_at_turn']:,} long sequences cut after the last turn that fits")
        if source.get("cut_documents"):
            found.append(f"{name}: {source['cut_documents']:,} documents longer than a packed row were cut into pieces")
        if source["dropped_sequences"]:
            found.append(f"{name}: {source['dropped_sequences']:,} sequences too long and dropped")
        if source.get("not_read"):
            shown = [f"{path} ({why})" for path, why in list(source["not_read"].items())[:SHOWN]]
            more = len(source["not_read"]) - len(shown)
            found.append(
                f"{name}: not read: {', '.join(shown)}{f' and {more:,} more, all in metadata.json' if more else ''}"
            )
        if source.get("unread"):
            listed = ", ".join(f"{key} ({rows:,} rows)" for key, rows in source["unread"].items())
            found.append(f"{name}: unused keys: {listed}")
        if source["guarded"]:
            found.append(
                f"{name}: control tokens in the text of {source['guarded']:,} sequences were encoded as plain text"
            )
    return found
