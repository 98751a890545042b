"""A submitted run on disk (`job.json`) and what Slurm knows of it: state, log, cancelling, waiting.

The state comes from the scheduler while it remembers the job, then from accounting, then from the exit code that the batch
script left in the run's folder. Torch-free; needs nothing but the folder and Slurm's commands.
"""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sft_hydra.errors import ClusterError
from sft_hydra.paths import RunPaths

FINAL = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "NODE_FAIL",
    "BOOT_FAIL",
    "DEADLINE",
    "UNKNOWN",
)
POLL_SECONDS = 2.0  # between two questions to the scheduler
LAST_LINES = 30
LOG_SECONDS = 0.3  # between two looks at a log


@dataclass(frozen=True, slots=True)
class JobState:
    name: str
    """Slurm's word for it; UNKNOWN: nobody knows the job any more; UNREACHABLE: the scheduler does not answer."""
    detail: str = ""
    """Reason, nodes, or where the answer is from."""

    @property
    def is_active(self) -> bool:
        return self.name not in FINAL

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


@dataclass(frozen=True, slots=True)
class Handle:
    folder: Path
    """The run's folder."""
    job_id: str
    """`12`, or `12_3` for a job of an array."""
    log: Path
    """What the job prints; attempts of one job follow each other."""
    submitted: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))

    def save(self) -> None:
        content = {"job_id": self.job_id, "log": str(self.log), "submitted": self.submitted}
        RunPaths(self.folder).job.write_text(json.dumps(content, indent=1) + "\n")

    def cancel(self) -> None:
        done = subprocess.run(["scancel", self.job_id], capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"scancel {self.job_id}: {done.stderr.strip()}")


def find_handle(folder: Path) -> Handle | None:
    """The handle of a run's folder, None if it was never submitted."""
    file = RunPaths(folder).job
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    return Handle(folder, content["job_id"], Path(content["log"]), content["submitted"])


def find_handles(folder: Path) -> list[Handle]:
    """All submitted runs in a folder and below it, oldest first."""
    found = [find_handle(file.parent) for file in sorted(folder.rglob(RunPaths(folder).job.name))]
    return sorted((handle for handle in found if handle), key=lambda handle: handle.submitted)


def job_state(handle: Handle) -> JobState:
    return job_states([handle])[0]


def job_states(handles: Sequence[Handle]) -> list[JobState]:
    """Ask the scheduler for all of them at once, accounting for those it has forgotten, else look into their folders."""
    complaint = ""
    queue = _ask("squeue", "--array", "--states=all", f"--jobs={_ids(handles)}", "--format=%i|%T|%r|%N")
    if queue.returncode and "Invalid job id" not in queue.stderr:
        return [JobState("UNREACHABLE", queue.stderr.strip())] * len(handles)
    states = {}
    for number, name, reason, nodes in _table(queue):
        states[number] = JobState(name, nodes or ("" if reason == "None" else reason))
    forgotten = [handle for handle in handles if handle.job_id not in states]
    if forgotten:
        past = _ask(
            "sacct", "--allocations", "--parsable2", f"--jobs={_ids(forgotten)}", "--format=JobID,State,ExitCode"
        )
        for number, name, code in _table(past):
            states[number] = JobState(name.split()[0], f"exit code {code.split(':')[0]}")  # `CANCELLED by 0`
        complaint = past.stderr.strip()
    return [states.get(handle.job_id) or _left_behind(handle, complaint) for handle in handles]


def _ids(handles: Sequence[Handle]) -> str:
    return ",".join(handle.job_id for handle in handles)


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([command[0], "--noheader", *command[1:]], capture_output=True, text=True)
    except FileNotFoundError:
        raise ClusterError(f"no {command[0]} on this machine: jobs are known where Slurm's commands are") from None


def _table(answer: subprocess.CompletedProcess[str]) -> list[list[str]]:
    return [line.split("|") for line in answer.stdout.splitlines()]


def _left_behind(handle: Handle, complaint: str) -> JobState:
    file = RunPaths(handle.folder).slurm / "exit_code"
    if file.is_file():
        code = file.read_text().strip()
        return JobState("COMPLETED" if code == "0" else "FAILED", f"exit code {code}, from {file}")
    return JobState("UNKNOWN", complaint or "Slurm has no record of the job")


def wait(handle: Handle) -> JobState:
    """Block until the job is over."""
    while (state := job_state(handle)).is_active:
        time.sleep(POLL_SECONDS)
    return state


def follow(handle: Handle, say: Callable[[str], None], *, to_end: bool = True) -> JobState:
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


def _last_words(handle: Handle) -> str:
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


def attach(handles: Sequence[Handle], say: Callable[[str], None]) -> bool:
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


def ways_back(handles: Sequence[Handle]) -> str:
    """Commands for jobs that go on without us."""
    jobs = "python -m sft_hydra.jobs"
    common = shlex.quote(os.path.relpath(os.path.commonpath([handle.folder for handle in handles])))
    look = f"follow  {jobs} logs -f {common}" if len(handles) == 1 else f"list    {jobs} list {common}"
    return f"  {look}\n  cancel  {jobs} cancel {common}"
