"""Several ranks of one run on this machine: child processes with torchrun's environment variables.

The parent does not import torch, does not repeat the ranks' output, and forwards signals, so that one Ctrl-C or `kill`
reaches every rank once. It ends with the exit code of the rank that failed first.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sft_hydra.config.run_folder import begin
from sft_hydra.paths import RunPaths
from sft_hydra.planning.topology import ranks_of_runner
from sft_hydra.process.lifeline import LOCKS, PARENT
from sft_hydra.process.rank import STORE_SOCKET
from sft_hydra.process.signals import StoppedError
from sft_hydra.schema.config import SftConfig

GRACE_SECONDS = 3.0  # for the other ranks to report errors after one failed, and to end once they are killed
POLL_SECONDS = 0.1
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


def run_here(cfg: SftConfig) -> int:
    """Run a resolved config on this machine, each rank in a separate process; returns the exit code."""
    file = RunPaths(Path(str(cfg.run_dir))).config(cfg.runner.value)
    nodes, ranks = ranks_of_runner(cfg)
    worker = ["-m", "sft_hydra.worker", str(file)]
    with begin(cfg) as locks:
        if nodes == 1:
            return start_ranks([sys.executable, *worker], ranks, [lock.descriptor for lock in locks])
    print(
        f"cluster.nodes={nodes}, but this is one machine. Use cluster=slurm, or start this command on each of the {nodes} "
        "nodes:\n"
        f"  torchrun --nnodes={nodes} --nproc-per-node={ranks} --rdzv-backend=c10d --rdzv-endpoint=<first host>:29500 "
        + shlex.join(worker)
    )
    return 0


def start_ranks(command: Sequence[str], world_size: int, locks: Sequence[int] = ()) -> int:
    """Run `command` once for each rank until all have ended. 0, or the exit code of the first rank that failed (killed: 1).
    `locks`: open files that the first rank holds too, so that they last as long as anything writes.

    StoppedError if they ended because of a signal to this process.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=world_size) as store:  # open: nobody else gets its port
        # in a new session, so that the terminal's Ctrl-C reaches only the parent
        ranks = [
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=() if rank else (*locks, store.fileno()),
            )
            for rank, environment in enumerate(_environments(world_size, locks, store))
        ]
    try:
        with _signals_forwarded(ranks) as signals:
            failed = _first_failure(ranks)
            if failed is None:
                return 0
            _await_end(ranks)
    finally:
        _kill(ranks)
    if signals:
        raise StoppedError(f"stopped by {signals[0].name}")
    code = ranks[failed].returncode
    if code > 0:
        return code
    print(f"rank {failed} of {world_size} was killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    return 1


def _environments(world_size: int, locks: Sequence[int], store: socket.socket) -> Iterator[dict[str, str]]:
    port = store.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // world_size)
    for rank in range(world_size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SFT_HYDRA_HOSTS": socket.gethostname()}
        ends = {PARENT: os.getpid(), LOCKS: "" if rank else ",".join(map(str, locks))}
        if rank == 0:
            meeting[STORE_SOCKET] = store.fileno()
        ours = {name: str(value) for name, value in {**own, **meeting, **ends}.items()}
        yield {"OMP_NUM_THREADS": str(threads), **os.environ, **ours}


@contextmanager
def _signals_forwarded(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[signal.Signals]]:
    """Forwards signals to the ranks during the body; yields the list of those received. A second Ctrl-C kills the ranks."""
    received: list[signal.Signals] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        for process in ranks:
            if received.count(signal.SIGINT) > 1:
                process.kill()
            else:
                process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until a rank fails (returns its index) or all have succeeded (None)."""
    while True:
        codes = [process.poll() for process in ranks]
        for rank, code in enumerate(codes):
            if code:
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(POLL_SECONDS)


def _kill(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        process.kill()
    _await_end(ranks)  # a killed process can stay in a driver call for a while


def _await_end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(POLL_SECONDS)
