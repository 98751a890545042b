"""Processes that end when the one that started them does: `end_with_parent` in the child, `Lifeline` in the parent. Ranks get
the parent's process id and the run's locks in environment variables. Torch-free.

The kernel kills the child where it can do that (Linux); everywhere, a thread of the child waits for the end of a pipe whose
other end only the parent has. So nothing outlives a `kill -9`, and the parent can end all of them at once.
"""

import ctypes
import os
import signal
import sys
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

PR_SET_PDEATHSIG = 1
PARENT, LOCKS = "SFT_HYDRA_PARENT", "SFT_HYDRA_LOCKS"  # variables of ranks: whose child they are, which locks they hold


class Lifeline:
    """`end` goes to the children, which are spawned; when it is cut, or this process dies, they end."""

    def __init__(self) -> None:
        self.end, self._own = get_context("spawn").Pipe(duplex=False)

    def cut(self) -> None:
        self._own.close()
        self.end.close()


def end_with_parent(lifeline: Connection | None = None) -> None:
    """Called in a child that multiprocessing has started: it ends at once when its parent does or cuts the lifeline."""
    parent = parent_process()
    assert parent is not None
    kill_with_parent(parent.pid)
    ends: list[Any] = [parent.sentinel] if lifeline is None else [parent.sentinel, lifeline]

    def watch() -> None:
        wait(ends)
        os._exit(1)

    Thread(target=watch, daemon=True, name="lifeline").start()


def kill_with_parent(parent: int | None) -> None:
    """Have the kernel kill this process when the process `parent`, which started it, ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it had ended before the call
            os._exit(1)


def live_with_parent() -> None:
    """In a rank that our launcher has started: it ends when the launcher does."""
    if (parent := os.environ.pop(PARENT, None)) is not None:
        kill_with_parent(int(parent))


def locks_handed_over() -> bool:
    """Whether this rank inherited open files with the locks of its run. Its own child processes do not."""
    descriptors = [int(number) for number in os.environ.pop(LOCKS, "").split(",") if number]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return bool(descriptors)
