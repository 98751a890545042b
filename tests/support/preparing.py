"""Preparations in processes of their own, with workers, that may be killed at any moment."""

import json
import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import patch

from support.chats import data_cfg
from support.waiting import until

from sft_hydra.data_prep import prepare as room
from sft_hydra.process import signals
from sft_hydra.schema.config import SftConfig

TOKEN = "SFT_HYDRA_TEST_PREPARATION"  # in the environment of a preparation and of all that it starts


def packed_cfg(folder: Path, rows: Path, workers: int = 1) -> SftConfig:
    """A set of six shards in one folder, whatever its inputs."""
    cfg = data_cfg(folder, rows=rows)
    cfg.data.packed_dir = str(folder / "packed")
    cfg.data.num_shards, cfg.data.num_workers = 6, workers
    return cfg


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a packed set; of its metadata what does not tell the time."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    metadata = json.loads(found.pop("metadata.json"))
    metadata.pop("timings")
    metadata["tokenizer"].pop("template_time")
    return {**found, "metadata.json": json.dumps(metadata).encode()}


def started(cfg: SftConfig, token: str) -> ForkServerProcess:
    """A process that prepares with workers, however little there is to do. It may have children of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preparing"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process = context.Process(target=_prepare, args=(cfg, token))
        process.start()
    return process


def _prepare(cfg: SftConfig, token: str) -> None:
    os.environ[TOKEN] = token
    room.WORTH_A_WORKER = 1
    with signals.listening(), signals.at_once():
        room.prepare(cfg)


def left_over(token: str) -> list[int]:
    """Processes that a preparation has started and that are still there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                is_ours = f"{TOKEN}={token}".encode() in (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # it has gone, or is another user's
                continue
            if is_ours:
                found.append(int(entry.name))
    return found


def wait_until_gone(token: str) -> None:
    """Until none of these processes is left."""
    until(lambda: not left_over(token))
