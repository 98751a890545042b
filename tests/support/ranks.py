"""Real processes that talk by gloo. They are forked from one that has imported torch, so that starting them is cheap."""

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

SECONDS = 240  # that one run may take
GRACE = 3  # seconds that the others have once one has failed


class RanksFailedError(AssertionError):
    """What the ranks say that failed."""


def run_ranks(world: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """Results of `function(*args, **kwargs)`, a function of a module, on each of `world` ranks of a process group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preload"])
    # the server that forks looks for what it preloads on this path alone
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        processes, pipes = [], {}
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            work = (theirs, rank, world, Path(folder) / "store", function, args, kwargs)
            process = context.Process(target=_run, args=work, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes[ours] = rank
        answers = _collect(pipes)
        for process in processes:
            process.join(GRACE if len(answers) == world else 0)
            process.kill()
    failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in sorted(answers.items()) if not ok]
    failures += [f"rank {rank} did not answer" for rank in range(world) if rank not in answers]
    if failures:
        raise RanksFailedError("\n".join(failures))
    return [answers[rank][1] for rank in range(world)]


def _collect(pipes: dict[Connection, int]) -> dict[int, tuple[bool, Any]]:
    """Answers by rank, of those that give one in time."""
    answers: dict[int, tuple[bool, Any]] = {}
    waiting = dict(pipes)
    while waiting:
        failed = any(not ok for ok, _ in answers.values())
        ready = wait(list(waiting), GRACE if failed else SECONDS)
        if not ready:
            break
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                answers[rank] = pickle.loads(pipe.recv_bytes())
            except EOFError:
                answers[rank] = (False, "it died")
    return answers


def _run(
    answer: Connection, rank: int, world: int, store: Path, function: Callable[..., Any], args: Any, kwargs: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    try:
        if world > 1:
            dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=SECONDS), rank=rank, world_size=world)
        result = (True, function(*args, **kwargs))
    except BaseException:
        result = (False, traceback.format_exc())
    # by value: multiprocessing's own pickling would have the receiver fetch tensors from a process that is gone
    answer.send_bytes(pickle.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()
