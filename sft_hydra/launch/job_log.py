"""Waiting for submitted runs and following their logs; detaching leaves them running. Torch-free."""

import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sft_hydra.launch.job import JobState, SlurmJob, job_state
from sft_hydra.paths import RunPaths

POLL_SECONDS = 2.0  # between two queries of the scheduler
LOG_SECONDS = 0.3  # between two reads of a log
LAST_LINES = 30


def wait(handle: SlurmJob) -> JobState:
    """Block until the job has ended; returns its final state."""
    while (state := job_state(handle)).is_active:
        time.sleep(POLL_SECONDS)
    return state


def follow(handle: SlurmJob, say: Callable[[str], None], *, to_end: bool = True) -> JobState:
    """Pass the job's log to `say`, with a line for each change of state, until the job has ended.

    `to_end=False`: only the log as it is now.
    """
    position, before, last_poll = 0, None, -POLL_SECONDS
    while True:
        if time.monotonic() - last_poll >= POLL_SECONDS:
            state, last_poll = job_state(handle), time.monotonic()
        last = not (state.is_active and to_end)
        text, position = _read_on(handle.log, position, last)
        if text:
            say(text)
        if state != before:
            say(f"[job {handle.job_id}: {state}]\n")
        if last:
            if not handle.log.exists():
                say(_end_of_run_log(handle))
            return state
        before = state
        time.sleep(LOG_SECONDS)


def _end_of_run_log(handle: SlurmJob) -> str:
    """The last lines of the run's log.txt: they say why the run did not start if its data preparation failed."""
    log = RunPaths(handle.folder).log
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return "".join(lines[-LAST_LINES:])


def _read_on(log: Path, position: int, last: bool) -> tuple[str, int]:
    """The text of a log from a byte position on, in complete lines (at the end all of it), and the position after it."""
    if not log.exists():
        return "", position
    with log.open("rb") as file:
        file.seek(position)
        piece = file.read()
    if not last:
        piece = piece[: piece.rfind(b"\n") + 1]
    return piece.decode(errors="replace"), position + len(piece)


def attach(handles: Sequence[SlurmJob], say: Callable[[str], None]) -> bool:
    """Wait until the jobs have ended: follow the log of a single one, report the states of several. Ctrl-C detaches and
    leaves them running.

    False if one of them did not succeed.
    """
    try:
        if len(handles) == 1:
            return follow(handles[0], say).name == "COMPLETED"
        states = []
        for handle in handles:
            states.append(wait(handle))
            say(f"job {handle.job_id}: {states[-1]}  {os.path.relpath(handle.folder)}\n")
        return all(state.name == "COMPLETED" for state in states)
    except KeyboardInterrupt:
        say(f"\nleft running: {', '.join(handle.job_id for handle in handles)}\n{ways_back(handles)}\n")
        return True


def ways_back(handles: Sequence[SlurmJob]) -> str:
    """Commands to follow or list, and to cancel, jobs that are left running."""
    jobs = "python -m sft_hydra.jobs"
    common = shlex.quote(os.path.relpath(os.path.commonpath([handle.folder for handle in handles])))
    look = f"follow  {jobs} logs -f {common}" if len(handles) == 1 else f"list    {jobs} list {common}"
    return f"  {look}\n  cancel  {jobs} cancel {common}"
