"""Data preparation from config to packed set: `prepare(cfg)`, `open_existing(cfg)`, `open_or_prepare(cfg)`.

    plan -> tokenize each shard (pool) -> splits of all rows -> pack each shard (pool) -> metadata.json -> rename

Invariant: a folder with metadata.json is complete, and its rows are those of the inputs that its key was computed from. Work
is done in `<folder>.partial`, whose finished shards survive a kill and are reused by the next attempt; locks (owning.py)
serialize preparations of one folder. The result does not depend on the number of workers.
"""

import json
import os
import secrets
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import partial as partial_of
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa

from sft_hydra.chat.served_tokenizer import may_differ, served_file
from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.data.shards import NOT_OURS, PackedSet, is_ours
from sft_hydra.data.splits import assign
from sft_hydra.data_prep.metadata import build_metadata, write_set
from sft_hydra.data_prep.owning import may_prepare, remove_leftover, throw_away, working_in
from sft_hydra.data_prep.packed_set_checks import check_fits, check_rejects, is_stale
from sft_hydra.data_prep.plan import Plan, Request, check_unchanged, make_plan, read_request
from sft_hydra.data_prep.pool import WorkerPool, spool_folder, undisturbed
from sft_hydra.data_prep.progress import OnProgress, Reporter
from sft_hydra.data_prep.token_store import read_token_store
from sft_hydra.data_prep.tokenize import ADVERSARIAL, start_fast
from sft_hydra.data_prep.tokenizer_backend import choose_backend, probe_sequences, probe_texts
from sft_hydra.data_prep.tokenizer_cache import TokenizerRecord
from sft_hydra.errors import ConfigError, DataError, MissingPackedDataError
from sft_hydra.files import exists, unwritable
from sft_hydra.paths import data_root
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import Prepare

SERVED = "served_tokenizer.json"  # in the `.partial` folder
WORTH_A_WORKER = 48 << 20  # bytes of input above which another worker process pays off


def open_existing(cfg: SftConfig) -> PackedSet | None:
    """The packed set of `cfg` if it exists and is up to date, else None. With `data.packed_dir` the set in it, whose seq_length
    and tokenizer must be the run's: SeqLengthMismatchError or TokenizerMismatchError. DataError if it is invalid."""
    tokenizer = load_tokenizer(cfg)
    if cfg.data.packed_dir is None:
        return _open(_folder(cfg, read_request(cfg, tokenizer)), cfg)
    packed = _open(Path(cfg.data.packed_dir), cfg)
    if packed is None:
        return None
    check_fits(packed, cfg, tokenizer)
    return packed if not is_stale(packed, cfg, tokenizer) else None


def prepare(cfg: SftConfig, on_progress: OnProgress | None = None) -> PackedSet:
    """The packed set of `cfg`, made if it does not exist or `data.force` is set. `on_progress` is called as rows are done.
    ConfigError for invalid options, DataError for invalid inputs or a folder that cannot be written."""
    began = time.monotonic()
    tokenizer = load_tokenizer(cfg)
    if (foreign := _foreign(cfg, tokenizer)) is not None:
        return foreign
    request = read_request(cfg, tokenizer)
    folder = _folder(cfg, request)
    _refuse_strangers(folder)

    def prepared() -> PackedSet | None:
        packed = None if cfg.data.force else _open(folder, cfg)
        return packed if packed is not None and packed.metadata.get("content_key") == request.key else None

    if (packed := prepared()) is not None:
        remove_leftover(folder, _partial(folder))
        return packed
    with may_prepare(folder, request.key, _owner(cfg)):
        if (packed := prepared()) is not None:  # by the preparation that held the lock
            return packed
        try:
            _make(cfg, request, tokenizer, folder, on_progress, began)
        except OSError as problem:  # inputs that cannot be read raised DataError before
            raise DataError(f"{folder}: cannot be written {unwritable(problem)}") from None
        except pa.ArrowException as problem:
            raise DataError(f"{folder}: cannot be written ({problem}).") from None
    return PackedSet.open(folder)


def _foreign(cfg: SftConfig, tokenizer: ChatTokenizer) -> PackedSet | None:
    """The set of another tool in `data.packed_dir`, with `data.trust_foreign`; else None. ConfigError with `data.force`."""
    if not (cfg.data.trust_foreign and cfg.data.packed_dir):
        return None
    packed = PackedSet.open(cfg.data.packed_dir, trust_foreign=True)
    if not packed.metadata.get("foreign"):
        return None
    if cfg.data.force:
        raise ConfigError(
            f"data.force=true: {packed.folder} was packed by another tool and cannot be repacked; remove data.force"
        )
    check_fits(packed, cfg, tokenizer)
    return packed


def prepare_part(cfg: SftConfig, on_progress: OnProgress | None = None) -> None:
    """Tokenize every `data.num_parts`-th shard from `data.part` on, on one of several machines that share a file system.
    `prepare` then reuses these shards. Errors as `prepare`."""
    assert cfg.data.part is not None
    assert cfg.data.num_parts is not None
    tokenizer = load_tokenizer(cfg)
    request = read_request(cfg, tokenizer)
    folder = _folder(cfg, request)
    partial = _partial(folder)
    _refuse_strangers(folder)
    if _open(folder, cfg) is not None:
        return
    with may_prepare(folder, request.key, _owner(cfg)), ThreadPoolExecutor(1) as background:
        plan, library = _plan(cfg, request, tokenizer, partial, background)
        library.result()
    mine = plan.shards[cfg.data.part :: cfg.data.num_parts]
    mine = [shard for shard in mine if not spool_folder(partial, plan, shard.number).is_dir()]
    progress = Reporter(plan, on_progress)
    with working_in(partial), WorkerPool(plan, library, _workers(cfg, plan), progress.add) as pool:
        pool.tokenize(mine, partial, progress.stage("tokenize"))
    check_unchanged(request, tokenizer)


def packed_folder(cfg: SftConfig) -> Path:
    """The folder of the packed set of `cfg`, which need not exist. ConfigError or DataError for invalid inputs."""
    return _folder(cfg, read_request(cfg, load_tokenizer(cfg)))


def open_or_prepare(cfg: SftConfig, on_progress: OnProgress | None = None) -> PackedSet:
    """The packed set for training: the existing one, else made now (`data.prepare=auto`) or MissingPackedDataError
    (`data.prepare=never`). Other errors as `prepare`."""
    packed = None if cfg.data.force and cfg.data.prepare is Prepare.auto else open_existing(cfg)
    if packed is not None:
        return packed
    if cfg.data.prepare is Prepare.never:
        raise missing(cfg)
    return prepare(cfg, on_progress)


def missing(cfg: SftConfig) -> MissingPackedDataError:
    """The error for a missing packed set, with the command that makes it."""
    options = {
        "data": cfg.data.name,
        "data.path": cfg.data.path,
        "data.blend": cfg.data.blend,
        "data.packed_dir": cfg.data.packed_dir,
        "tokenizer.path": cfg.tokenizer.path,
        "model.path": cfg.model.path,
    }
    words = [f"{key}={value}" for key, value in options.items() if value is not None]
    command = " ".join(["python -m sft_hydra runner=data_prep", *words, f"seq_length={cfg.seq_length}"])
    place = cfg.data.packed_dir or str(data_root(cfg.output_dir))
    return MissingPackedDataError(
        f"missing_packed_data: {place} has no packed set for this run, and data.prepare=never. "
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
    if exists(folder) and not folder.is_dir():
        raise DataError(f"data.packed_dir={folder}: not a folder. Choose another path.")
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
    partial = _partial(folder)
    _take_back(folder)
    with undisturbed(), ThreadPoolExecutor(1) as background:
        plan, library = _plan(cfg, request, tokenizer, partial, background)
        target = partial / f"set.{plan.key}.{secrets.token_hex(4)}"  # used by this attempt only
        planned = time.monotonic()
        spools = [spool_folder(partial, plan, shard.number) for shard in plan.shards]
        progress = Reporter(plan, on_progress)
        with WorkerPool(plan, library, _workers(cfg, plan), progress.add) as pool:
            left = [shard for shard, spool in zip(plan.shards, spools, strict=True) if not spool.is_dir()]
            pool.tokenize(left, partial, progress.stage("tokenize"))
            tokenized = time.monotonic()
            check_rejects(plan, spools)
            splits = _assign(plan, spools)
            for unfinished in partial.glob("set.*"):  # packing is fast: it restarts from the beginning
                shutil.rmtree(unfinished)
            target.mkdir()
            entries = pool.pack(splits, partial, target, progress.stage("pack"))
    check_unchanged(request, tokenizer)
    metadata = build_metadata(plan, tokenizer, library.result(), cfg, spools, splits, entries)
    done = time.monotonic()
    metadata["timings"] = {
        "plan_seconds": planned - began,
        "tokenize_seconds": tokenized - planned,
        "pack_seconds": done - tokenized,
        "total_seconds": done - began,
    }
    write_set(target, plan, spools, splits, entries, metadata, cfg.data.format)
    _publish(target, folder)
    shutil.rmtree(partial)


def _plan(
    cfg: SftConfig, request: Request, tokenizer: ChatTokenizer, partial: Path, background: ThreadPoolExecutor
) -> tuple[Plan, Future[str]]:
    """The plan, and the tokenizer library once it is chosen. Finished work of another plan is deleted; that of the same plan,
    its library and its time are reused."""
    record = partial / "plan.json"
    recorded = _read_record(record)
    served = partial / SERVED
    if recorded.get("key") == request.key and not (cfg.data.force and cfg.data.num_parts is None):
        if served.is_file():
            tokenizer.serve_from(served)
        _recall(tokenizer)
        return make_plan(cfg, request, tokenizer, recorded["now"]), background.submit(lambda: str(recorded["library"]))
    throw_away(partial)
    (partial / "spool").mkdir(parents=True)
    now = datetime.now().isoformat(timespec="seconds")
    reading = Event()

    def load_fast() -> None:
        reading.set()
        start_fast(tokenizer)

    differs = may_differ(tokenizer)
    if not differs:
        background.submit(load_fast)  # takes a second
    texts = probe_texts(request, tokenizer)
    if differs:
        tokenizer.serve_from(served_file(tokenizer, served, [*ADVERSARIAL, *texts]))
    _recall(tokenizer)

    def choose_once() -> str:
        reading.set()
        library = choose_backend(tokenizer, texts, partial_of(probe_sequences, request, tokenizer, cfg.data))
        temporary = partial / f"plan.{secrets.token_hex(4)}.tmp"
        temporary.write_text(json.dumps({"key": request.key, "library": library, "now": now}))
        os.replace(temporary, record)  # before any token store is complete, which needs the library
        return library

    library = background.submit(choose_once)
    reading.wait()  # the thread soon releases the GIL, which loading the reference library for the plan does not
    return make_plan(cfg, request, tokenizer, now), library


def _recall(tokenizer: ChatTokenizer) -> None:
    """Apply the cached record of a tokenizer, so that the reference library need not load it."""
    if (known := TokenizerRecord.load(tokenizer, ADVERSARIAL)) is not None:
        known.apply(tokenizer)


def _read_record(record: Path) -> dict[str, str]:
    """The record of an earlier attempt; empty if it is missing or invalid."""
    try:
        entry = json.loads(record.read_text())
        return {name: str(entry[name]) for name in ("key", "library", "now") if datetime.fromisoformat(entry["now"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _workers(cfg: SftConfig, plan: Plan) -> int:
    """Number of processes, this one included: no more than pay off for the size of the inputs."""
    allowed = cfg.data.num_workers or os.cpu_count() or 1
    return min(allowed, 1 + sum(shard.bytes for shard in plan.shards) // WORTH_A_WORKER, len(plan.shards))


def _assign(plan: Plan, spools: list[Path]) -> list[Any]:
    """For each shard the split of every row, as index into SPLITS or LEFT_OUT."""
    hashes = [read_token_store(spool).rows["hash"] for spool in spools]
    of_source = [[i for i, shard in enumerate(plan.shards) if shard.source == s] for s in range(len(plan.sources))]
    empty = [np.zeros(0, np.uint64)]
    joined = [np.concatenate([hashes[i] for i in members] or empty) for members in of_source]
    found = assign(joined, [s.only for s in plan.sources], plan.data.split, plan.seed, plan.data.filters.dedup)
    splits: list[Any] = [None] * len(spools)
    for members, values in zip(of_source, found, strict=True):
        for i, part in zip(members, np.split(values, np.cumsum([len(hashes[i]) for i in members])[:-1]), strict=True):
            splits[i] = part
    return splits


def _publish(target: Path, folder: Path) -> None:
    """Rename the finished set to `folder`, replacing the set there."""
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(target, folder)
    shutil.rmtree(old, ignore_errors=True)


def _take_back(folder: Path) -> None:
    """Restore the previous set after a replacement that did not finish."""
    if _old(folder).is_dir() and not folder.exists():
        os.replace(_old(folder), folder)


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def _owner(cfg: SftConfig) -> str:
    return cfg.run_dir or "another command"
