"""A submitted run on disk (`job.json`), and the state of its Slurm job.

The state comes from the scheduler (squeue), else from accounting (sacct), else from the exit code that the batch script wrote
to the run's folder. Torch-free; needs only the folder and Slurm's commands.
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
    """State of a Slurm job."""

    name: str
    """Slurm's name of the state; UNKNOWN: Slurm has no record of the job; UNREACHABLE: the scheduler does not output."""
    detail: str = ""
    """Reason, nodes, or the source of the state."""

    @property
    def is_active(self) -> bool:
        """Whether the job is queued or running (or its state cannot be determined)."""
        return self.name not in FINAL

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A submitted job of a run."""

    folder: Path
    """The run's folder."""
    job_id: str
    """`12`, or `12_3` for a job of an array."""
    log: Path
    """Output file of the job; attempts of a requeued job are appended."""
    submitted: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))

    def save(self) -> None:
        """Write job.json in the run's folder."""
        content = {"job_id": self.job_id, "log": str(self.log), "submitted": self.submitted}
        RunPaths(self.folder).job.write_text(json.dumps(content, indent=1) + "\n")

    def cancel(self) -> None:
        """Cancel the job. ClusterError if scancel fails."""
        done = subprocess.run(["scancel", self.job_id], capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"scancel {self.job_id} failed: {done.stderr.strip()}")


def find_job(folder: Path) -> SlurmJob | None:
    """The last submitted job of a run's folder; None if the run was never submitted."""
    file = RunPaths(folder).job
    if not exists(file):
        return None
    fix = "remove it: the job is then unknown here, but squeue still lists it"
    content = read_object(file, error=ClusterError, fix=fix)
    words = [content.get(key) for key in ("job_id", "log", "submitted")]
    if not all(isinstance(word, str) for word in words):
        raise unreadable(file, "it does not describe a submitted job", ClusterError, fix)
    job_id, log, submitted = map(str, words)
    return SlurmJob(folder, job_id, Path(log), submitted)


def find_jobs(folder: Path) -> list[SlurmJob]:
    """Jobs of all submitted runs in a folder and below it, oldest first."""
    name = RunPaths(folder).job.name
    files = [file for depth in range(FOLDER_DEPTH + 1) for file in sorted(folder.glob("*/" * depth + name))]
    found = [find_job(file.parent) for file in files]
    return sorted((handle for handle in found if handle), key=lambda handle: handle.submitted)


def job_state(handle: SlurmJob) -> JobState:
    """The state of one job, see `job_states`."""
    return job_states([handle])[0]


def job_states(handles: Sequence[SlurmJob]) -> list[JobState]:
    """States of all jobs: one squeue call for all, sacct for those it does not list, else the run's folder.

    ClusterError if Slurm's commands are not installed.
    """
    sacct_error = ""
    queue = _run_slurm("squeue", "--array", "--states=all", f"--jobs={_ids(handles)}", "--format=%i|%T|%r|%N")
    if queue.returncode and "Invalid job id" not in queue.stderr:
        return [JobState("UNREACHABLE", queue.stderr.strip())] * len(handles)
    states = {}
    for number, name, reason, nodes in _table(queue):
        states[number] = JobState(name, nodes or ("" if reason == "None" else reason))
    unlisted = [handle for handle in handles if handle.job_id not in states]
    if unlisted:
        past = _run_slurm(
            "sacct", "--allocations", "--parsable2", f"--jobs={_ids(unlisted)}", "--format=JobID,State,ExitCode"
        )
        for number, name, code in _table(past):
            states[number] = JobState(name.split()[0], f"exit code {code.split(':')[0]}")  # `CANCELLED by 0`
        sacct_error = past.stderr.strip()
    return [states.get(handle.job_id) or _state_from_folder(handle, sacct_error) for handle in handles]


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


def _run_slurm(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([command[0], "--noheader", *command[1:]], capture_output=True, text=True)
    except FileNotFoundError:
        raise ClusterError(
            f"{command[0]} is not installed on this machine; run this on a machine with Slurm (a login node)"
        ) from None


def _table(output: subprocess.CompletedProcess[str]) -> list[list[str]]:
    return [line.split("|") for line in output.stdout.splitlines()]


def _state_from_folder(handle: SlurmJob, sacct_error: str) -> JobState:
    file = RunPaths(handle.folder).slurm / "exit_code"
    if file.is_file():
        code = file.read_text().strip()
        return JobState("COMPLETED" if code == "0" else "FAILED", f"exit code {code}, from {file}")
    return JobState("UNKNOWN", sacct_error or "Slurm has no record of the job")
