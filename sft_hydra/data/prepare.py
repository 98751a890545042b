"""Data preparation from config to packed set: `prepare(cfg)`, `find(cfg)`, `obtain(cfg)`.

    plan -> tokenize each shard (pool) -> splits of all rows -> pack each shard (pool) -> metadata.json -> rename

Invariant: a folder with metadata.json is whole. Work goes on in `<folder>.partial`, whose finished shards survive a
kill and are taken up by the next try; a lock keeps two preparations of one folder apart. The result is the same for any
number of workers.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from sft_hydra.config.schema import SftConfig
from sft_hydra.config.schema_data import Prepare
from sft_hydra.data.metadata import build_metadata, write_set
from sft_hydra.data.plan import Plan, content_key, first_rows, make_plan
from sft_hydra.data.pool import Pool
from sft_hydra.data.shards import PackedSet
from sft_hydra.data.sources import files_of, sources_of
from sft_hydra.data.splits import assign
from sft_hydra.data.spool import read_spool
from sft_hydra.data.tokenize import choose_library
from sft_hydra.data.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.errors import DataError, MissingPackedDataError, SeqLengthMismatchError, TokenizerMismatchError
from sft_hydra.paths import data_root

PROBE_ROWS = 16  # of each source, on which fastokens must agree
PROBE_CHARS = 2000  # of each of them


@dataclass(slots=True)
class Progress:
    """How far a preparation is. `stage`: tokenize, pack."""

    stage: str
    rows: int
    total_rows: int
    tokens: int
    trained_tokens: int
    rejected: int
    shards: int
    total_shards: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


OnProgress = Callable[[Progress], None]


def find(cfg: SftConfig) -> PackedSet | None:
    """The packed set that `cfg` asks for, if it is there. With `data.packed_dir` the set in it, whose seq_length and
    tokenizer must be the run's. Raises SeqLengthMismatchError, TokenizerMismatchError or DataError."""
    tokenizer = load_tokenizer(cfg)
    if cfg.data.packed_dir is None:
        return _open(_folder(cfg, content_key(cfg, tokenizer)[0]), cfg)
    packed = _open(Path(cfg.data.packed_dir), cfg)
    if packed is None:
        return None
    check_fits(packed, cfg, tokenizer)
    return packed if not _is_stale(packed, cfg, tokenizer) else None


def prepare(cfg: SftConfig, on_progress: OnProgress | None = None) -> PackedSet:
    """The packed set that `cfg` asks for, made if it is not there or `data.force` is set. Raises UserError kinds."""
    tokenizer = load_tokenizer(cfg)
    key = content_key(cfg, tokenizer)[0]
    folder = _folder(cfg, key)
    _refuse_strangers(folder)
    with _lock(folder):
        if not cfg.data.force:
            packed = _open(folder, cfg)
            if packed is not None and packed.metadata.get("content_key") == key:
                return packed
        try:
            _make(cfg, tokenizer, folder, on_progress)
        except OSError as problem:  # inputs that cannot be read are told before, by name
            raise DataError(f"{folder}: cannot be written ({problem}). Is the disk full?") from None
    return PackedSet.open(folder)


def prepare_part(cfg: SftConfig, on_progress: OnProgress | None = None) -> None:
    """Tokenize every `data.num_parts`-th shard, on one of several machines that share a file system. `prepare` then finds
    these shards done."""
    assert cfg.data.part is not None
    assert cfg.data.num_parts is not None
    tokenizer = load_tokenizer(cfg)
    folder = packed_folder(cfg)
    partial = folder.with_name(folder.name + ".partial")
    _refuse_strangers(folder)
    if _open(folder, cfg) is not None:
        return
    with _lock(folder):
        plan = _plan(cfg, tokenizer, partial)
    mine = [s for s in plan.shards[cfg.data.part :: cfg.data.num_parts] if not _spool(partial, s.number).is_dir()]
    progress = _Reporter(plan, on_progress)
    with Pool(plan, _workers(cfg, plan), progress.add) as pool:
        pool.tokenize(mine, partial, progress.stage("tokenize"))


def packed_folder(cfg: SftConfig) -> Path:
    """Where the packed set that `cfg` asks for is, or goes."""
    return _folder(cfg, content_key(cfg, load_tokenizer(cfg))[0])


def obtain(cfg: SftConfig, on_progress: OnProgress | None = None) -> PackedSet:
    """What training uses: the set if it is there, else made now (`data.prepare=auto`) or MissingPackedDataError."""
    packed = None if cfg.data.force and cfg.data.prepare is Prepare.auto else find(cfg)
    if packed is not None:
        return packed
    if cfg.data.prepare is Prepare.never:
        raise missing(cfg)
    return prepare(cfg, on_progress)


def missing(cfg: SftConfig) -> MissingPackedDataError:
    """The error that says which packed set is missing and which command makes it."""
    said = {
        "data": cfg.data.name,
        "data.path": cfg.data.path,
        "data.blend": cfg.data.blend,
        "data.packed_dir": cfg.data.packed_dir,
        "tokenizer.path": cfg.tokenizer.path,
        "model.path": cfg.model.path,
    }
    words = [f"{key}={value}" for key, value in said.items() if value is not None]
    command = " ".join(["python -m sft_hydra runner=data_prep", *words, f"seq_length={cfg.seq_length}"])
    place = cfg.data.packed_dir or str(data_root(cfg.output_dir))
    return MissingPackedDataError(
        f"missing_packed_data: no packed set for this run in {place}, and data.prepare=never. "
        f"Make it with the same command and runner=data_prep: {command}"
    )


def check_fits(packed: PackedSet, cfg: SftConfig, tokenizer: ChatTokenizer) -> None:
    """Raises SeqLengthMismatchError or TokenizerMismatchError unless this run can train on `packed`."""
    size = packed.metadata["pack_size"]
    if packed.metadata.get("foreign"):
        if size > cfg.seq_length:
            raise SeqLengthMismatchError(
                f"{packed.folder}: rows of {size} tokens do not fit seq_length={cfg.seq_length}"
            )
        return
    if size != cfg.seq_length:
        raise SeqLengthMismatchError(
            f"{packed.folder}: packed for seq_length={size}, this run has seq_length={cfg.seq_length}. "
            f"Give seq_length={size}, or prepare again into another data.packed_dir."
        )
    if packed.metadata["tokenizer"]["fingerprint"] != tokenizer.fingerprint:
        raise TokenizerMismatchError(
            f"tokenizer_mismatch: {packed.folder} was made with the tokenizer {packed.metadata['tokenizer']['path']} and "
            f"its template; this run has {tokenizer.folder}. Use that tokenizer.path and tokenizer.chat_template, or "
            "prepare again."
        )


def _is_stale(packed: PackedSet, cfg: SftConfig, tokenizer: ChatTokenizer) -> bool:
    """True if `packed_dir` holds what this config's own inputs once gave, and these or the options have changed."""
    if packed.metadata.get("foreign"):
        return False
    recorded = {entry["path"] for entry in packed.metadata["inputs"]}
    try:
        wanted = {file.path for source in sources_of(cfg.data) for file in files_of(source)}
    except DataError:  # the inputs are elsewhere: the packed set stands for itself
        return False
    return bool(recorded & wanted) and content_key(cfg, tokenizer)[0] != packed.metadata["content_key"]


def _folder(cfg: SftConfig, key: str) -> Path:
    return Path(cfg.data.packed_dir) if cfg.data.packed_dir else data_root(cfg.output_dir) / key


def _open(folder: Path, cfg: SftConfig) -> PackedSet | None:
    try:
        return PackedSet.open(folder, cfg.data.trust_foreign and cfg.data.packed_dir is not None)
    except MissingPackedDataError:
        return None


def _refuse_strangers(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "metadata.json").is_file():
        raise DataError(
            f"data.packed_dir={folder}: not empty and not a packed set. Choose another folder, or give "
            "data.trust_foreign=true if another tool packed it."
        )


def _make(cfg: SftConfig, tokenizer: ChatTokenizer, folder: Path, on_progress: OnProgress | None) -> None:
    began = time.monotonic()
    partial = folder.with_name(folder.name + ".partial")
    plan = _plan(cfg, tokenizer, partial)
    timings = {"plan_seconds": time.monotonic() - began}
    progress = _Reporter(plan, on_progress)
    with Pool(plan, _workers(cfg, plan), progress.add) as pool:
        pool.tokenize(
            [s for s in plan.shards if not _spool(partial, s.number).is_dir()], partial, progress.stage("tokenize")
        )
        timings["tokenize_seconds"] = time.monotonic() - began - timings["plan_seconds"]
        spools = [_spool(partial, shard.number) for shard in plan.shards]
        _check_rejects(plan, spools, partial)
        splits = _assign(plan, spools)
        for split in ("train", "valid", "test"):  # packing is quick: a half-packed try starts it again
            shutil.rmtree(partial / split, ignore_errors=True)
        entries = pool.pack(splits, partial, progress.stage("pack"))
    timings["pack_seconds"] = time.monotonic() - began - sum(timings.values())
    metadata = build_metadata(plan, tokenizer, cfg, spools, splits, entries)
    metadata["timings"] = {**timings, "total_seconds": time.monotonic() - began}
    write_set(partial, plan, spools, splits, entries, metadata, cfg.data.format)
    shutil.rmtree(partial / "spool")
    (partial / "plan.json").unlink()
    _publish(partial, folder)


def _plan(cfg: SftConfig, tokenizer: ChatTokenizer, partial: Path) -> Plan:
    """The plan; finished work of another plan is thrown away, that of the same plan and its time are kept."""
    key, sources, files, _ = content_key(cfg, tokenizer)
    record = partial / "plan.json"
    said = json.loads(record.read_text()) if record.is_file() else {}
    if said.get("key") != key or cfg.data.force:
        shutil.rmtree(partial, ignore_errors=True)
        rows = [json.dumps(row, ensure_ascii=False, default=str) for row in first_rows(sources, files, PROBE_ROWS)]
        texts = [text for row in rows if _is_unicode(text := row[:PROBE_CHARS])]
        library = choose_library(tokenizer, [*texts, tokenizer.template or ""])
        said = {"key": key, "library": library, "now": datetime.now().isoformat(timespec="seconds")}
        (partial / "spool").mkdir(parents=True)
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps(said))
        os.replace(temporary, record)
    return make_plan(cfg, tokenizer, said["library"], said["now"])


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _workers(cfg: SftConfig, plan: Plan) -> int:
    return min(cfg.data.num_workers or os.cpu_count() or 1, len(plan.shards))


def _spool(partial: Path, number: int) -> Path:
    return partial / "spool" / f"shard_{number:06d}"


def _check_rejects(plan: Plan, spools: list[Path], partial: Path) -> None:
    """Raises DataError if more rows were rejected than `data.max_bad_rows`, or a source has none left."""
    counts = [read_spool(spool).counts for spool in spools]
    problems = []
    for index, source in enumerate(plan.sources):
        own = [count for shard, count in zip(plan.shards, counts, strict=True) if shard.source == index]
        rows = sum(count.get("rows", 0) for count in own)
        reasons: dict[str, int] = {}
        for count in own:
            for name, number in count.items():
                if name.startswith("rejected/"):
                    reasons[name.removeprefix("rejected/")] = reasons.get(name.removeprefix("rejected/"), 0) + number
        told = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items(), key=lambda item: -item[1]))
        if rows == 0:
            problems.append(f"source {source.name}: {source.config.path} has no rows")
        elif sum(reasons.values()) == rows:
            problems.append(
                f"source {source.name}: all {rows} rows were rejected ({told}). {_first_rejects(plan, spools, index)}"
            )
    limit = plan.data.max_bad_rows
    total = sum(number for count in counts for name, number in count.items() if name.startswith("rejected/"))
    if limit is not None and total > limit:
        problems.append(f"{total} rows were rejected, data.max_bad_rows={limit}. {_first_rejects(plan, spools, None)}")
    if problems:
        raise DataError(*problems)


def _first_rejects(plan: Plan, spools: list[Path], source: int | None) -> str:
    shown: list[str] = []
    for shard, spool in zip(plan.shards, spools, strict=True):
        if source in (None, shard.source):
            with open(spool / "rejects.jsonl", encoding="utf-8") as stream:
                for line in stream:
                    entry = json.loads(line)
                    shown.append(f"{entry['origin']}: {entry['reason']} ({entry['detail'][:200]})")
                    if len(shown) == 3:
                        return "First of them: " + "; ".join(shown)
    return "First of them: " + "; ".join(shown)


def _assign(plan: Plan, spools: list[Path]) -> list[Any]:
    """Splits of every shard's rows."""
    hashes = [np.load(spool / "rows.npy")["hash"] for spool in spools]
    of_source = [[i for i, shard in enumerate(plan.shards) if shard.source == s] for s in range(len(plan.sources))]
    empty = [np.zeros(0, np.uint64)]
    joined = [np.concatenate([hashes[i] for i in members] or empty) for members in of_source]
    found = assign(joined, [s.only for s in plan.sources], plan.data.split, plan.seed, plan.data.filters.dedup)
    splits: list[Any] = [None] * len(spools)
    for members, values in zip(of_source, found, strict=True):
        for i, part in zip(members, np.split(values, np.cumsum([len(hashes[i]) for i in members])[:-1]), strict=True):
            splits[i] = part
    return splits


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished set its name; what was there before goes away in the same moment."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Only one preparation of a folder at a time; a killed process lets go by itself."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class _Reporter:
    """Adds up what workers report and passes it on."""

    def __init__(self, plan: Plan, on_progress: OnProgress | None) -> None:
        self.on_progress = on_progress
        self.began = time.monotonic()
        self.now = Progress("tokenize", 0, plan.total_rows, 0, 0, 0, 0, len(plan.shards), 0.0)

    def stage(self, name: str) -> Callable[[], None]:
        self.now.stage, self.now.shards = name, 0

        def shard_done() -> None:
            self.now.shards += 1
            self.add(0, 0, 0, 0)

        return shard_done

    def add(self, rows: int, tokens: int, trained: int, rejected: int) -> None:
        now = self.now
        now.rows += rows
        now.tokens += tokens
        now.trained_tokens += trained
        now.rejected += rejected
        now.seconds = time.monotonic() - self.began
        if self.on_progress is not None:
            self.on_progress(Progress(**asdict(now)))
