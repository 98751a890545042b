"""runner=data_prep: make the packed set, with progress that a person can follow and a table per source at the end."""

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
from sft_hydra.schema.config import LoggerConfig, SftConfig

SHOWN = 5  # files that are not read
UNKNOWN = "unknown"
COLUMNS = ("source", "rows", "kept", "rejected", "tokens", "trained", "p50", "p95", "longest", "packs", "blend")


def run(cfg: SftConfig) -> None:
    """Prepare what `data` asks for, or say that it is there already, and tell the trackers; with `data.part`, only that share
    of it."""
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
    """The packed set as an artifact that this run has made. Trainings that use it name the same, whence the lineage."""
    from sft_hydra.runners.tracking import data_artifact, open_trackers  # with torch, which preparing does without

    with closing(open_trackers(cfg, paths, console, resume_step=0)) as trackers:
        trackers.made(data_artifact(cfg, packed))


def prepared_set(cfg: SftConfig, console: Console) -> PackedSet:
    """The packed set of a run that needs one: found, or made with progress on `console`. Raises UserError kinds."""
    with signals.at_once(), console.work("preparing data") as work:
        made: list[Progress] = []

        def show(progress: Progress) -> None:
            made.append(progress)
            _show(work, progress)

        packed = open_or_prepare(cfg, show)
    if made or packed.metadata.get("foreign"):
        _tell(console, cfg, packed)
    else:
        console.say(f"data: {packed.folder} (prepared before)")
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
    """What the chat template makes of these rows, in one line."""
    if meta["tokenizer"].get("template") is None:
        return []
    sources = meta["sources"]
    sequences, apart, bare, ends = (
        sum(source.get(key, 0) for source in sources) for key in ("sequences", "apart", "bare_headers", "open_ends")
    )
    parts = [f"{sequences:,} sequences held to the serving prompt"]
    parts += [f"{apart:,} of them of one turn, as no text shows its turns as served"] * bool(apart)
    parts += [f"{bare:,} turns without a serving prompt, of which only the header is masked"] * bool(bare)
    parts += [f"{ends:,} turns without an end-of-turn token, because the template prints none"] * bool(ends)
    refused = Counter[str]()
    for source in sources:
        refused.update(source.get("refused", {}))
    parts += [f"refused {count:,} rows ({reason})" for reason, count in refused.most_common(3)]
    return [f"chat template: {'; '.join(parts)}"]


def notes(packed: PackedSet) -> list[str]:
    """What a person should know about this set beyond its figures, a line each."""
    if packed.metadata.get("foreign"):
        return [f"{packed.folder}: packed by another tool. Unknown: {packed.unknown}"]
    found = _about_template(packed.metadata)
    for source in packed.metadata["sources"]:
        name = source["name"]
        if source["rejected"]:
            found.append(
                f"{name}: {source['rejected']:,} rows left out, each with its reason in {packed.folder}/rejects.jsonl"
            )
        if source["truncated"]:
            found.append(f"{name}: {source['truncated']:,} sequences were cut off, their last turn has no end of turn")
        if source["cut_at_turn"]:
            found.append(f"{name}: {source['cut_at_turn']:,} long sequences end at the last turn that fits")
        if source.get("cut_documents"):
            found.append(f"{name}: {source['cut_documents']:,} documents longer than a packed row were cut into pieces")
        if source["dropped_sequences"]:
            found.append(f"{name}: {source['dropped_sequences']:,} sequences of kept rows did not fit")
        if source.get("not_read"):
            shown = [f"{path} ({why})" for path, why in list(source["not_read"].items())[:SHOWN]]
            more = len(source["not_read"]) - len(shown)
            found.append(
                f"{name}: not read: {', '.join(shown)}{f' and {more:,} more, all in metadata.json' if more else ''}"
            )
        if source.get("unread"):
            listed = ", ".join(f"{key} ({rows:,} rows)" for key, rows in source["unread"].items())
            found.append(f"{name}: keys that were not read: {listed}")
        if source["guarded"]:
            found.append(f"{name}: control-token text in {source['guarded']:,} sequences was encoded as ordinary text")
    return found
