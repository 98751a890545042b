"""runner=data_prep: make the packed set, with progress that a person can follow and a table per source at the end."""

from contextlib import closing
from pathlib import Path

from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.blend import plan_epoch
from sft_hydra.data_prep.prepare import open_or_prepare, prepare, prepare_part
from sft_hydra.data_prep.progress import Progress
from sft_hydra.observe.console import Console, Work
from sft_hydra.paths import RunPaths
from sft_hydra.process import signals
from sft_hydra.schema.config import LoggerConfig, SftConfig

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
    if made:
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
            f"{source['rows']:,}",
            f"{source['kept']:,}",
            ", ".join(f"{count:,} {reason}" for reason, count in source["rejects"].items()) or "0",
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
    seconds = meta["timings"]["total_seconds"]
    splits = ", ".join(f"{split} {packed.num_rows(split):,}" for split in ("train", "valid", "test"))
    console.say(
        f"{splits} rows of {meta['pack_size']:,} tokens, {meta['efficiency']:.2%} full, {meta['tokens'] / 1e6:.1f}M tokens "
        f"with {meta['tokenizer']['library']} in {seconds:.1f} s: {packed.folder}"
    )


def notes(packed: PackedSet) -> list[str]:
    """What a person should know about this set beyond its figures, a line each."""
    found = []
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
        if source["dropped_sequences"]:
            found.append(f"{name}: {source['dropped_sequences']:,} sequences of kept rows did not fit")
        if source["bare_headers"]:
            found.append(
                f"{name}: {source['bare_headers']:,} turns do not start as the serving prompt does; only their header is masked"
            )
        if source["left_out"]:
            found.append(
                f"{name}: in {source['left_out']:,} turns the template prints a tool call without the text beside it"
            )
        if source["guarded"]:
            found.append(f"{name}: control-token text in {source['guarded']:,} sequences was encoded as ordinary text")
    return found
