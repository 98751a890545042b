"""From resolved configs to submitted Slurm jobs, through submitit's executor.

Owns what reaches a job from the submitting shell: a few plain variables and those named in `cluster.env_pass`, by name.
Submitting writes resolved.yaml, the batch script and job.json, and needs no torch.
"""

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError

from sft_hydra.config import saved
from sft_hydra.config.schema import SftConfig
from sft_hydra.errors import ClusterError
from sft_hydra.launch import local
from sft_hydra.launch.handle import Handle, attach, find_handle, job_state, ways_back
from sft_hydra.launch.script import BatchScript, batch_scripts, run_folder
from sft_hydra.launch.sweep import Job
from sft_hydra.paths import RunPaths

PLAIN_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV",
                   "CONDA_PREFIX", "MODULEPATH", "SLURM_CONF")  # fmt: skip


class ScriptExecutor(SlurmExecutor):
    """submitit's executor for scripts of ours: nothing is pickled, and no process of submitit runs on the nodes."""

    def __init__(self, folder: Path, variables: Sequence[str], after: Sequence[str]) -> None:
        super().__init__(folder)
        self._variables = variables
        self._after = after

    def submit_script(self, text: str) -> str:
        """Hand the script to sbatch, keep it as `<job id>_submission.sh`, return the job id. FailedJobError if refused."""
        return self._submit_command(text).job_id

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return command

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # SLURM_* and SBATCH_* of an allocation we may be in would contradict the script, so they stay behind like the rest
        behind = [f"--unset={name}" for name in os.environ if name not in self._variables]
        depend = [f"--dependency=afterok:{':'.join(self._after)}", "--kill-on-invalid-dep=yes"] if self._after else []
        return ["env", *behind, "sbatch", *depend, str(submission_file_path)]


def plan_jobs(jobs: Sequence[Job]) -> None:
    """What `dry_run=true` prints: the plans, and the exact scripts that would be submitted."""
    local.plan_jobs(jobs)
    for script in batch_scripts([job.cfg for job in jobs]):
        print(f"== batch script for {len(script.cfgs)} job(s), to be kept in {script.folder}\n{script.text}")


def run_jobs(jobs: Sequence[Job]) -> list[Handle]:
    """Submit the jobs and say where they are; with `cluster.attach`, stay until they are over.

    Exits with code 1 if a job that was attended to ends without success.
    """
    handles = submit([job.cfg for job in jobs])
    for handle in handles:
        print(f"job {handle.job_id}  {os.path.relpath(handle.folder)}  log {os.path.relpath(handle.log)}")
    if not jobs[0].cfg.cluster.attach:
        print(ways_back(handles))
    elif not attach(handles, lambda text: print(text, end="", flush=True)):
        raise SystemExit(1)
    return handles


def submit(cfgs: Sequence[SftConfig], after: Sequence[str] = ()) -> list[Handle]:
    """Submit every run, one job array for those that ask Slurm for the same; they start once the jobs `after` succeeded.

    Handles come in the order of `cfgs`. ClusterError if there is no Slurm, if a run has a job already, or if sbatch
    refuses; arrays submitted before that are cancelled again.
    """
    if shutil.which("sbatch") is None:
        raise ClusterError("no sbatch on this machine: cluster=slurm works where Slurm's commands are (a login node)")
    _refuse_busy(cfgs)
    handles: dict[str, Handle] = {}
    with _all_or_nothing(handles):
        for script in batch_scripts(cfgs):
            for handle in _submit_script(script, after):
                handles[str(handle.folder)] = handle
    return [handles[str(run_folder(cfg))] for cfg in cfgs]


def _refuse_busy(cfgs: Sequence[SftConfig]) -> None:
    """Two jobs must not write one folder."""
    problems = []
    for cfg in cfgs:
        handle = find_handle(run_folder(cfg))
        if handle is not None and (state := job_state(handle)).is_active:
            problems.append(
                f"{cfg.run_dir}: its job {handle.job_id} is {state.name}; wait for it, or "
                f"`python -m sft_hydra.jobs cancel {cfg.run_dir}` first, or name=... for another run"
            )
    if problems:
        raise ClusterError(*problems)


def _submit_script(script: BatchScript, after: Sequence[str]) -> Iterator[Handle]:
    script.folder.mkdir(parents=True, exist_ok=True)
    for cfg in script.cfgs:
        saved.save(cfg, RunPaths(run_folder(cfg)).config(cfg.runner.value))
        RunPaths(run_folder(cfg)).job.unlink(missing_ok=True)
    cluster = script.cfgs[0].cluster
    executor = ScriptExecutor(script.folder, (*PLAIN_VARIABLES, *cluster.env_pass), after)
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it also raises
            number = executor.submit_script(script.text)
    except FailedJobError as error:
        raise ClusterError(f"sbatch refused the job: {error}; the script is in {script.folder}") from error
    for index, cfg in enumerate(script.cfgs):
        job_id = f"{number}_{index}" if script.is_array else number
        handle = Handle(folder=run_folder(cfg), job_id=job_id, log=script.folder / f"{job_id}.txt", after=list(after))
        handle.save()
        yield handle


@contextmanager
def _all_or_nothing(handles: dict[str, Handle]) -> Iterator[None]:
    try:
        yield
    except ClusterError:
        for handle in handles.values():
            handle.cancel()
        raise
