"""One of several ranks, before torch is imported: which one this is, where it prints, and how its failure is told. Torch-free.

Owns the rule that a run speaks with one voice: rank 0 has the terminal, the others a file each; whichever rank fails first
tells why on the terminal, in full, and those it takes down with it one line each.
"""

import os
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from sft_hydra.errors import UserError
from sft_hydra.paths import RunPaths
from sft_hydra.process.signals import StoppedError


@dataclass(frozen=True, slots=True)
class Rank:
    """The names of torchrun's variables, which our own launchers set as well; without them, the only rank."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def this_rank() -> Rank:
    if "RANK" not in os.environ:
        return Rank()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Rank(*(int(os.environ[name]) for name in names))


@contextmanager
def rank_output(rank: Rank, paths: RunPaths) -> Iterator[None]:
    """Send what this rank prints where it belongs; tell of an exception and go on raising it."""
    terminal = _redirect(rank, paths)
    try:
        yield
    except StoppedError:  # no failure
        raise
    except Exception as error:
        _tell(error, rank, paths, terminal)
        raise


def _redirect(rank: Rank, paths: RunPaths) -> TextIO:
    """Ranks other than 0 move to files of their own. Returns the terminal."""
    if rank.rank == 0:
        return sys.stderr
    terminal = os.fdopen(os.dup(2), "w")
    paths.ranks.mkdir(parents=True, exist_ok=True)
    with (paths.ranks / f"{rank.rank}.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return terminal


def _tell(error: Exception, rank: Rank, paths: RunPaths, terminal: TextIO) -> None:
    why = error.describe() if isinstance(error, UserError) else traceback.format_exc()
    who = f"rank {rank.rank} of {rank.world_size} on {socket.gethostname()}"
    if _is_first(f"{who} failed:\n{why}\n", paths):
        print(f"{who} failed:\n{why}", file=terminal, flush=True)
    elif not isinstance(error, UserError):  # a mistake of the user is every rank's mistake
        print(f"{who} failed too: {type(error).__name__}, see {paths.ranks}/{rank.rank}.txt", file=terminal, flush=True)


def _is_first(text: str, paths: RunPaths) -> bool:
    """Whether no other rank of this attempt has failed before: the first one makes the attempt's file."""
    attempt = os.environ.get("SFT_HYDRA_ATTEMPT") or os.getppid()  # on one machine, the ranks' common parent
    paths.ranks.mkdir(parents=True, exist_ok=True)
    try:
        with (paths.ranks / f"failure_{attempt}.txt").open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
