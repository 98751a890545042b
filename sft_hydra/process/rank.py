"""The rank of this process, its output and its failure report, before torch is imported. Torch-free.

Rank 0 prints to the terminal, other ranks to a file each. The rank that fails first prints its error to the terminal in full;
ranks that fail after it print one line each.
"""

import os
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from sft_hydra.errors import ClusterError, UserError
from sft_hydra.paths import RunPaths
from sft_hydra.process.signals import StoppedError

# rank 0: descriptor of the listening socket at MASTER_PORT, opened by our launcher
STORE_SOCKET = "SFT_HYDRA_STORE_SOCKET"


@dataclass(frozen=True, slots=True)
class Rank:
    """Values of torchrun's environment variables, which our launchers set as well; the defaults are a single rank."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def this_rank() -> Rank:
    """The rank that the environment defines. ClusterError if it names several ranks but not the local one, as on platforms that
    start a container for each rank."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    if "RANK" not in found or (found.get("WORLD_SIZE", "1") == "1" and len(found) < len(names)):
        return Rank()
    values = " ".join(f"{name}={value}" for name, value in found.items())
    if missing := [name for name in names if name not in found]:
        raise ClusterError(
            f"{values} is set, but not {' and '.join(missing)}: start the ranks of each host with torchrun "
            "(torchrun --nnodes=<hosts> --nproc-per-node=<GPUs> -m sft_hydra.worker <resolved.yaml>), set all four variables "
            "for each rank, or unset them for a run on this machine alone"
        )
    if wrong := [f"{name}={value}" for name, value in found.items() if not value.isdecimal()]:
        raise ClusterError(f"{', '.join(wrong)}: not a number; RANK and the variables beside it are set by torchrun")
    return Rank(*(int(found[name]) for name in names))


@contextmanager
def rank_output(rank: Rank, paths: RunPaths) -> Iterator[None]:
    """Redirect this rank's output; report an exception and re-raise it."""
    terminal = _redirect(rank, paths)
    try:
        yield
    except StoppedError:  # no failure
        raise
    except Exception as error:
        _report_failure(error, rank, paths, terminal)
        raise


def _redirect(rank: Rank, paths: RunPaths) -> TextIO:
    """Redirect stdout and stderr of ranks other than 0 to `ranks/<rank>.txt`. Returns the terminal."""
    if rank.rank == 0:
        return sys.stderr
    terminal = os.fdopen(os.dup(2), "w")
    paths.ranks.mkdir(parents=True, exist_ok=True)
    with (paths.ranks / f"{rank.rank}.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return terminal


def _report_failure(error: Exception, rank: Rank, paths: RunPaths, terminal: TextIO) -> None:
    why = error.describe() if isinstance(error, UserError) else traceback.format_exc()
    who = f"rank {rank.rank} of {rank.world_size} on {socket.gethostname()}"
    if _is_first(f"{who} failed:\n{why}\n", paths):
        print(f"{who} failed:\n{why}", file=terminal, flush=True)
    elif not isinstance(error, UserError):  # a mistake of the user is every rank's mistake
        print(f"{who} failed too: {type(error).__name__}, see {paths.ranks}/{rank.rank}.txt", file=terminal, flush=True)


def _is_first(text: str, paths: RunPaths) -> bool:
    """Whether this rank is the first of the attempt to fail: the first one creates the attempt's failure file."""
    attempt = os.environ.get("SFT_HYDRA_ATTEMPT") or os.getppid()  # on one machine, the ranks' common parent
    paths.ranks.mkdir(parents=True, exist_ok=True)
    try:
        with (paths.ranks / f"failure_{attempt}.txt").open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
