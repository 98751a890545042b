"""Real processes that talk by gloo: started once, used for many layouts."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOAD = ["torch", "torch.distributed", "torch.distributed.fsdp", "torch.distributed.pipelining", "support.training"]
SECONDS = 120  # that one job may take
GRACE = 3  # seconds that the others have once one has failed
USES = 4  # of one process: gloo keeps the threads of groups that are long gone, hundreds of them after some layouts


class RanksFailedError(AssertionError):
    """What the ranks say that failed."""


class Ranks:
    """Processes that wait for work; `run` makes as many of them as are asked for a process group."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        self.used = 0

    def run(self, world: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Results of `function(*args, **kwargs)`, a function of a module, on ranks 0 to world - 1."""
        self.used += 1
        if self.used > USES:
            self.close()
        while len(self.pipes) < world:
            self._start_one()
        answers: dict[int, tuple[bool, Any]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for rank, pipe in enumerate(self.pipes[:world]):
                pipe.send((rank, world, Path(folder) / "store", function, args, kwargs))
            while len(answers) < world:
                failed = any(not ok for ok, _ in answers.values())
                waiting = {pipe: rank for rank, pipe in enumerate(self.pipes[:world]) if rank not in answers}
                ready = wait(list(waiting), GRACE if failed else SECONDS)
                if not ready:
                    break
                for pipe in ready:
                    answers[waiting[pipe]] = pipe.recv()
        failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in sorted(answers.items()) if not ok]
        if len(answers) < world:
            self.close()
            silent = sorted(set(range(world)) - answers.keys())
            failures.append(f"no answer from {silent}")
        if failures:
            raise RanksFailedError("\n".join(failures))
        return [answers[rank][1] for rank in range(world)]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.pipes, self.processes, self.used = [], [], 0

    def _start_one(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self.pipes.append(ours)
        self.processes.append(process)


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            rank, world, store, function, args, kwargs = pipe.recv()
        except EOFError:
            return
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
        try:
            if world > 1:
                dist.init_process_group(
                    "gloo", f"file://{store}", timedelta(seconds=SECONDS), rank=rank, world_size=world
                )
            pipe.send((True, function(*args, **kwargs)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
