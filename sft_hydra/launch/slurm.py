"""Submits resolved configs as Slurm jobs, through submitit's executor.

From the submitting shell a job gets PLAIN_VARIABLES and the variables named in `cluster.env_pass`, nothing else. Submitting
writes the run's config, the batch script and job.json. Torch-free.
"""

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError

from sft_hydra.config.run_folder import begin
from sft_hydra.errors import ClusterError
from sft_hydra.launch.job import SlurmJob, refuse_busy
from sft_hydra.launch.script import BatchScript, batch_scripts, run_folder
from sft_hydra.paths import RunPaths
from sft_hydra.schema.config import SftConfig

PLAIN_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV",
                   "CONDA_PREFIX", "MODULEPATH", "SLURM_CONF")  # fmt: skip


class ScriptExecutor(SlurmExecutor):
    """submitit's executor for our batch scripts: nothing is pickled, and submitit does not run on the nodes."""

    def __init__(self, folder: Path, variables: Sequence[str], dependency: str | None) -> None:
        super().__init__(folder)
        self._variables = variables
        self._dependency = dependency

    def submit_script(self, text: str) -> str:
        """Submit the script with sbatch, keep it as `<job id>_submission.sh`, return the job id. FailedJobError if sbatch
        rejects it."""
        return self._submit_command(text).job_id

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return command

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # SLURM_* and SBATCH_* variables of a surrounding allocation would override the script; unset all others as well
        unset = [f"--unset={name}" for name in os.environ if name not in self._variables]
        depend = [f"--dependency={self._dependency}", "--kill-on-invalid-dep=yes"] if self._dependency else []
        return ["env", *unset, "sbatch", *depend, str(submission_file_path)]


def submit(
    cfgs: Sequence[SftConfig], *, dependency: str | None = None, dependents: Sequence[SftConfig] = ()
) -> list[SlurmJob]:
    """Submit every run, as one job array those with the same resources. Returns the jobs in the order of `cfgs`.

    `dependency`: in sbatch's syntax (`afterok:12`); jobs whose dependency fails are cancelled. `dependents`: runs that will
    depend on these. ClusterError if Slurm is not installed, if a run has an active job, or if sbatch rejects one; then
    nothing stays submitted.
    """
    if shutil.which("sbatch") is None:
        raise ClusterError("no sbatch on this machine: cluster=slurm works where Slurm's commands are (a login node)")
    refuse_busy([run_folder(cfg) for cfg in cfgs])
    handles: list[SlurmJob] = []
    with all_or_nothing(handles):
        for script in batch_scripts(cfgs, dependents):
            handles += _submit_script(script, dependency)
    by_folder = {handle.folder: handle for handle in handles}
    return [by_folder[run_folder(cfg)] for cfg in cfgs]


@contextmanager
def all_or_nothing(handles: list[SlurmJob]) -> Iterator[None]:
    """Cancels the jobs that the body has appended to `handles` if it fails with a ClusterError."""
    try:
        yield
    except ClusterError:
        for handle in handles:
            handle.cancel()
        raise


def _submit_script(script: BatchScript, dependency: str | None) -> list[SlurmJob]:
    script.folder.mkdir(parents=True, exist_ok=True)
    for cfg in script.cfgs:
        with begin(cfg):
            RunPaths(run_folder(cfg)).job.unlink(missing_ok=True)
    variables = (*PLAIN_VARIABLES, *script.cfgs[0].cluster.env_pass)
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it also raises
            number = ScriptExecutor(script.folder, variables, dependency).submit_script(script.text)
    except FailedJobError as error:
        raise ClusterError(f"sbatch rejected the job: {error}; the script is in {script.folder}") from error
    ids = [f"{number}_{index}" for index in range(len(script.cfgs))] if script.is_array else [number]
    handles = [
        SlurmJob(run_folder(cfg), job_id, script.folder / f"{job_id}.txt")
        for cfg, job_id in zip(script.cfgs, ids, strict=True)
    ]
    for handle in handles:
        handle.save()
    return handles
