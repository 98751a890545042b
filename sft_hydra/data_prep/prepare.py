"""Data preparation from config to packed set: `prepare(cfg)`, `open_existing(cfg)`, `open_or_prepare(cfg)`.

    plan -> tokenize each shard (pool) -> splits of all rows -> pack each shard (pool) -> metadata.json -> rename

Invariant: a folder with metadata.json is whole. Work goes on in `<folder>.partial`, whose finished shards survive a
kill and are taken up by the next try; a lock keeps two preparations of one folder apart. The result is the same for any
number of workers.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial as partial_of
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from sft_hydra.chat.served_tokenizer import may_differ, served_file
from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.data.shards import NOT_OURS, PackedSet, is_ours
from sft_hydra.data.splits import assign
from sft_hydra.data_prep.metadata import build_metadata, write_set
from sft_hydra.data_prep.packed_set_checks import check_fits, check_rejects, is_stale
from sft_hydra.data_prep.plan import Plan, Request, make_plan, read_request
from sft_hydra.data_prep.pool import WorkerPool, spool_folder, undisturbed
from sft_hydra.data_prep.progress import OnProgress, Reporter
from sft_hydra.data_prep.tokenize import ADVERSARIAL
from sft_hydra.data_prep.tokenizer_backend import choose_backend, probe_sequences, probe_texts
from sft_hydra.errors import ConfigError, DataError, MissingPackedDataError
from sft_hydra.paths import data_root
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import Prepare

SERVED = "served_tokenizer.json"  # in the folder of a try
WORTH_A_WORKER = 48 << 20  # bytes of input that keep a worker busy for some seconds


def open_existing(cfg: SftConfig) -> PackedSet | None:
    """The packed set that `cfg` asks for, if it is there. With `data.packed_dir` the set in it, whose seq_length and
    tokenizer must be the run's. Raises SeqLengthMismatchError, TokenizerMismatchError or DataError."""
    tokenizer = load_tokenizer(cfg)
    if cfg.data.packed_dir is None:
        return _open(_folder(cfg, read_request(cfg, tokenizer)), cfg)
    packed = _open(Path(cfg.data.packed_dir), cfg)
    if packed is None:
        return None
    check_fits(packed, cfg, tokenizer)
    return packed if not is_stale(packed, cfg, tokenizer) else None


def prepare(cfg: SftConfig, on_progress: OnProgress | None = None) -> PackedSet:
    """The packed set that `cfg` asks for, made if it is not there or `data.force` is set. Raises UserError kinds."""
    began = time.monotonic()
    tokenizer = load_tokenizer(cfg)
    if (foreign := _foreign(cfg, tokenizer)) is not None:
        return foreign
    request = read_request(cfg, tokenizer)
    folder = _folder(cfg, request)
    _refuse_strangers(folder)
    with _lock(folder):
        if not cfg.data.force:
            packed = _open(folder, cfg)
            if packed is not None and packed.metadata.get("content_key") == request.key:
                return packed
        try:
            _make(cfg, request, tokenizer, folder, on_progress, began)
        except OSError as problem:  # inputs that cannot be read are told before, by name
            raise DataError(f"{folder}: cannot be written ({problem}). Is the disk full?") from None
    return PackedSet.open(folder)


def _foreign(cfg: SftConfig, tokenizer: ChatTokenizer) -> PackedSet | None:
    """The set of another tool in `data.packed_dir`, if that is trusted. ConfigError if it should be made again."""
    if not (cfg.data.trust_foreign and cfg.data.packed_dir):
        return None
    packed = PackedSet.open(cfg.data.packed_dir, trust_foreign=True)
    if not packed.metadata.get("foreign"):
        return None
    if cfg.data.force:
        raise ConfigError(f"data.force=true: {packed.folder} was packed by another tool and cannot be made again here")
    check_fits(packed, cfg, tokenizer)
    return packed


def prepare_part(cfg: SftConfig, on_progress: OnProgress | None = None) -> None:
    """Tokenize every `data.num_parts`-th shard, on one of several machines that share a file system. `prepare` then finds
    these shards done."""
    assert cfg.data.part is not None
    assert cfg.data.num_parts is not None
    tokenizer = load_tokenizer(cfg)
    request = read_request(cfg, tokenizer)
    folder = _folder(cfg, request)
    partial = folder.with_name(folder.name + ".partial")
    _refuse_strangers(folder)
    if _open(folder, cfg) is not None:
        return
    with _lock(folder), ThreadPoolExecutor(1) as background:
        plan, library = _plan(cfg, request, tokenizer, partial, background)
        library.result()
    mine = [s for s in plan.shards[cfg.data.part :: cfg.data.num_parts] if not spool_folder(partial, s.number).is_dir()]
    progress = Reporter(plan, on_progress)
    with WorkerPool(plan, library, _workers(cfg, plan), progress.add) as pool:
        pool.tokenize(mine, partial, progress.stage("tokenize"))


def packed_folder(cfg: SftConfig) -> Path:
    """Where the packed set that `cfg` asks for is, or goes."""
    return _folder(cfg, read_request(cfg, load_tokenizer(cfg)))


def open_or_prepare(cfg: SftConfig, on_progress: OnProgress | None = None) -> PackedSet:
    """What training uses: the set if it is there, else made now (`data.prepare=auto`) or MissingPackedDataError."""
    packed = None if cfg.data.force and cfg.data.prepare is Prepare.auto else open_existing(cfg)
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


def _folder(cfg: SftConfig, request: Request) -> Path:
    return Path(cfg.data.packed_dir) if cfg.data.packed_dir else data_root(cfg.output_dir) / request.key


def _open(folder: Path, cfg: SftConfig) -> PackedSet | None:
    try:
        return PackedSet.open(folder, cfg.data.trust_foreign and cfg.data.packed_dir is not None)
    except MissingPackedDataError:
        return None


def _refuse_strangers(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not is_ours(folder):
        raise DataError(f"data.packed_dir={folder}: {NOT_OURS}")


def _make(
    cfg: SftConfig,
    request: Request,
    tokenizer: ChatTokenizer,
    folder: Path,
    on_progress: OnProgress | None,
    began: float,
) -> None:
    partial = folder.with_name(folder.name + ".partial")
    with undisturbed(), ThreadPoolExecutor(1) as background:
        plan, library = _plan(cfg, request, tokenizer, partial, background)
        planned = time.monotonic()
        spools = [spool_folder(partial, shard.number) for shard in plan.shards]
        progress = Reporter(plan, on_progress)
        with WorkerPool(plan, library, _workers(cfg, plan), progress.add) as pool:
            left = [shard for shard, spool in zip(plan.shards, spools, strict=True) if not spool.is_dir()]
            pool.tokenize(left, partial, progress.stage("tokenize"))
            tokenized = time.monotonic()
            check_rejects(plan, spools)
            splits = _assign(plan, spools)
            for split in ("train", "valid", "test"):  # packing is quick: a half-packed try starts it again
                shutil.rmtree(partial / split, ignore_errors=True)
            entries = pool.pack(splits, partial, progress.stage("pack"))
    metadata = build_metadata(plan, tokenizer, library.result(), cfg, spools, splits, entries)
    done = time.monotonic()
    metadata["timings"] = {
        "plan_seconds": planned - began,
        "tokenize_seconds": tokenized - planned,
        "pack_seconds": done - tokenized,
        "total_seconds": done - began,
    }
    write_set(partial, plan, spools, splits, entries, metadata, cfg.data.format)
    shutil.rmtree(partial / "spool")
    (partial / "plan.json").unlink()
    (partial / SERVED).unlink(missing_ok=True)
    _publish(partial, folder)


def _plan(
    cfg: SftConfig, request: Request, tokenizer: ChatTokenizer, partial: Path, background: ThreadPoolExecutor
) -> tuple[Plan, Future[str]]:
    """The plan, and the library that encodes when it is known; finished work of another plan is thrown away, that of the
    same plan, its library and its time are kept."""
    record = partial / "plan.json"
    said = _read_record(record)
    served = partial / SERVED
    if said.get("key") == request.key and not (cfg.data.force and cfg.data.num_parts is None):
        if served.is_file():
            tokenizer.serve_from(served)
        return make_plan(cfg, request, tokenizer, said["now"]), background.submit(lambda: str(said["library"]))
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "spool").mkdir(parents=True)
    now = datetime.now().isoformat(timespec="seconds")
    texts = probe_texts(request, tokenizer)
    if may_differ(tokenizer):
        tokenizer.serve_from(served_file(tokenizer, served, [*ADVERSARIAL, *texts]))

    reading = Event()

    def choose_once() -> str:
        reading.set()
        library = choose_backend(tokenizer, texts, partial_of(probe_sequences, request, tokenizer, cfg.data))
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps({"key": request.key, "library": library, "now": now}))
        os.replace(temporary, record)  # before any spool is whole, because that waits for the library
        return library

    library = background.submit(choose_once)
    reading.wait()  # first the library that soon does without the interpreter: the plan reads the one that blocks it
    return make_plan(cfg, request, tokenizer, now), library


def _read_record(record: Path) -> dict[str, str]:
    """What an earlier try wrote down; nothing if that is torn."""
    try:
        return dict(json.loads(record.read_text()))
    except (OSError, ValueError):
        return {}


def _workers(cfg: SftConfig, plan: Plan) -> int:
    """Processes to use, this one included: as many as have work for longer than they take to start."""
    allowed = cfg.data.num_workers or os.cpu_count() or 1
    return min(allowed, 1 + sum(shard.bytes for shard in plan.shards) // WORTH_A_WORKER, len(plan.shards))


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

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stream = open(folder.with_name(folder.name + ".lock"), "w")  # noqa: SIM115 (closed below)
    except OSError as problem:
        raise DataError(f"{folder.parent}: cannot be written ({problem})") from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
