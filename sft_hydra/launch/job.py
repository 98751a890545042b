"""A submitted run on disk (`job.json`), and the state that Slurm knows of its job.

The state comes from the scheduler while it remembers the job, then from accounting, then from the exit code that the batch
script left in the run's folder. Torch-free; needs nothing but the folder and Slurm's commands.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sft_hydra.errors import ClusterError
from sft_hydra.files import exists, read_object, unreadable
from sft_hydra.paths import RunPaths

FINAL = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"),
    "UNKNOWN",
)
FOLDER_DEPTH = 3  # of a run below `outputs`: outputs/data/<key>.prep/part_0


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
class SlurmJob:
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


def find_job(folder: Path) -> SlurmJob | None:
    """The handle of a run's folder, None if it was never submitted."""
    file = RunPaths(folder).job
    if not exists(file):
        return None
    fix = "take it away: the job is then unknown here, squeue still has it"
    content = read_object(file, error=ClusterError, fix=fix)
    words = [content.get(key) for key in ("job_id", "log", "submitted")]
    if not all(isinstance(word, str) for word in words):
        raise unreadable(file, "it is no submitted job", ClusterError, fix)
    job_id, log, submitted = map(str, words)
    return SlurmJob(folder, job_id, Path(log), submitted)


def find_jobs(folder: Path) -> list[SlurmJob]:
    """All submitted runs in a folder and below it, oldest first."""
    name = RunPaths(folder).job.name
    files = [file for depth in range(FOLDER_DEPTH + 1) for file in sorted(folder.glob("*/" * depth + name))]
    found = [find_job(file.parent) for file in files]
    return sorted((handle for handle in found if handle), key=lambda handle: handle.submitted)


def job_state(handle: SlurmJob) -> JobState:
    return job_states([handle])[0]


def job_states(handles: Sequence[SlurmJob]) -> list[JobState]:
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


def refuse_busy(folders: Sequence[Path]) -> None:
    """Two jobs must not write one run's folder. ClusterError if one of these has a job that waits or runs."""
    problems = []
    for folder in folders:
        handle = find_job(folder)
        if handle is not None and (state := job_state(handle)).is_active:
            problems.append(
                f"{folder}: its job {handle.job_id} is {state.name}; wait for it, or "
                f"`python -m sft_hydra.jobs cancel {folder}` first, or name=... for another run"
            )
    if problems:
        raise ClusterError(*problems)


def _ids(handles: Sequence[SlurmJob]) -> str:
    return ",".join(handle.job_id for handle in handles)


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([command[0], "--noheader", *command[1:]], capture_output=True, text=True)
    except FileNotFoundError:
        raise ClusterError(f"no {command[0]} on this machine: jobs are known where Slurm's commands are") from None


def _table(answer: subprocess.CompletedProcess[str]) -> list[list[str]]:
    return [line.split("|") for line in answer.stdout.splitlines()]


def _left_behind(handle: SlurmJob, complaint: str) -> JobState:
    file = RunPaths(handle.folder).slurm / "exit_code"
    if file.is_file():
        code = file.read_text().strip()
        return JobState("COMPLETED" if code == "0" else "FAILED", f"exit code {code}, from {file}")
    return JobState("UNKNOWN", complaint or "Slurm has no record of the job")
