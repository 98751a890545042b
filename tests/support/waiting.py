"""Waiting for what another process does. The limit is pytest's timeout of the test."""

import subprocess
import time
from collections.abc import Callable


def until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Returns when the condition holds. AssertionError if `process`, which should make it hold, has ended before."""
    while not condition():
        if process is not None and process.poll() is not None:
            assert condition(), f"ended with exit code {process.returncode}: {process.communicate()[0]}"
        time.sleep(0.05)
