"""Real processes that talk by gloo: started once, used for many layouts."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

PRELOAD = ["torch", "torch.distributed", "torch.distributed.fsdp", "torch.distributed.pipelining", "support.training"]
SECONDS = 120  # that one job may take


class RanksFailedError(AssertionError):
    """What the ranks say that failed."""


class Ranks:
    """Up to `size` processes; `run` makes some of them a process group and calls a function on each."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, world: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Results of `function(*args, **kwargs)`, a function of a module, on ranks 0 to world - 1."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank, pipe in enumerate(self.pipes[:world]):
            pipe.send((rank, world, port, function, args, kwargs))
        answers = []
        for rank, pipe in enumerate(self.pipes[:world]):
            if not pipe.poll(SECONDS):
                self.close()
                raise RanksFailedError(f"rank {rank} of {world} did not answer in {SECONDS} s")
            answers.append(pipe.recv())
        failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(answers) if not ok]
        if failures:
            raise RanksFailedError("\n".join(failures))
        return [result for _, result in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            rank, world, port, function, args, kwargs = pipe.recv()
        except EOFError:
            return
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            if world > 1:
                dist.init_process_group("gloo", rank=rank, world_size=world)
            pipe.send((True, function(*args, **kwargs)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
