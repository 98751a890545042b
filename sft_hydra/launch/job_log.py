"""Staying with submitted runs: waiting for their end, following a log, leaving without ending anything. Torch-free."""

import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sft_hydra.launch.job import JobState, SlurmJob, job_state
from sft_hydra.paths import RunPaths

POLL_SECONDS = 2.0  # between two questions to the scheduler
LOG_SECONDS = 0.3  # between two looks at a log
LAST_LINES = 30


def wait(handle: SlurmJob) -> JobState:
    """Block until the job is over."""
    while (state := job_state(handle)).is_active:
        time.sleep(POLL_SECONDS)
    return state


def follow(handle: SlurmJob, say: Callable[[str], None], *, to_end: bool = True) -> JobState:
    """Copy the job's log to `say`, with a line for each change of state, until the job is over.

    `to_end=False`: what there is now.
    """
    position, before, asked = 0, None, -POLL_SECONDS
    while True:
        if time.monotonic() - asked >= POLL_SECONDS:
            state, asked = job_state(handle), time.monotonic()
        last = not (state.is_active and to_end)
        text, position = _read_on(handle.log, position, last)
        if text:
            say(text)
        if state != before:
            say(f"[job {handle.job_id}: {state}]\n")
        if last:
            if not handle.log.exists():
                say(_last_words(handle))
            return state
        before = state
        time.sleep(LOG_SECONDS)


def _last_words(handle: SlurmJob) -> str:
    """What the run's own log ends with: why a job that others waited for made it impossible to start."""
    log = RunPaths(handle.folder).log
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return "".join(lines[-LAST_LINES:])


def _read_on(log: Path, position: int, last: bool) -> tuple[str, int]:
    """What a log has from a byte position on, in whole lines, and the position after it."""
    if not log.exists():
        return "", position
    with log.open("rb") as file:
        file.seek(position)
        piece = file.read()
    if not last:
        piece = piece[: piece.rfind(b"\n") + 1]
    return piece.decode(errors="replace"), position + len(piece)


def attach(handles: Sequence[SlurmJob], say: Callable[[str], None]) -> bool:
    """Stay until the jobs are over: with the log of a single one, with the states of several. Ctrl-C leaves them running.

    False if one of them ended without success.
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
    """Commands for jobs that go on without us."""
    jobs = "python -m sft_hydra.jobs"
    common = shlex.quote(os.path.relpath(os.path.commonpath([handle.folder for handle in handles])))
    look = f"follow  {jobs} logs -f {common}" if len(handles) == 1 else f"list    {jobs} list {common}"
    return f"  {look}\n  cancel  {jobs} cancel {common}"
