"""Several ranks of one run on this machine: plain child processes with torchrun's variables.

The parent imports no torch, prints nothing that the ranks print themselves, and hands on signals, so that one Ctrl-C or
`kill` reaches every rank once. It ends with the exit code of the rank that failed first.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

LAST_WORDS_SECONDS = 5.0  # for ranks that lost a neighbour to say so, before they are killed
POLL_SECONDS = 0.1
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


def start_ranks(command: Sequence[str], world_size: int) -> int:
    """Run `command` once for each rank until all have ended. 0, or the exit code of the first rank that failed (killed: 1)."""
    # a session of their own: the terminal's Ctrl-C comes to the parent alone
    ranks = [
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        for environment in _environments(world_size)
    ]
    try:
        with _signals_forwarded(ranks):
            failed = _first_failure(ranks)
            if failed is None:
                return 0
            _await_end(ranks)
    finally:
        for process in ranks:
            process.kill()
    code = ranks[failed].returncode
    if code > 0:
        return code
    print(f"rank {failed} of {world_size} was killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    return 1


def _environments(world_size: int) -> Iterator[dict[str, str]]:
    port = _free_port()
    threads = max(1, (os.cpu_count() or 1) // world_size)
    for rank in range(world_size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SFT_HYDRA_HOSTS": socket.gethostname()}
        ours = {name: str(value) for name, value in {**own, **meeting}.items()}
        yield {"OMP_NUM_THREADS": str(threads), **os.environ, **ours}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _signals_forwarded(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    interrupts = 0

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        for process in ranks:
            if interrupts > 1:
                process.kill()
            else:
                process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until a rank fails, or all have ended well."""
    while True:
        codes = [process.poll() for process in ranks]
        for rank, code in enumerate(codes):
            if code:
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(POLL_SECONDS)


def _await_end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(POLL_SECONDS)
