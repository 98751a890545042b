"""Slurm jobs of the command line: planned, or submitted with their data preparation, and then detached or followed.

The counterpart of local.py.
"""

import os
from collections.abc import Sequence

from sft_hydra.errors import DataError, MissingPackedDataError
from sft_hydra.launch import local
from sft_hydra.launch.data_prep_jobs import DataPrepJob, data_prep_jobs
from sft_hydra.launch.job import SlurmJob, find_job, job_state
from sft_hydra.launch.job_log import attach, ways_back
from sft_hydra.launch.script import batch_scripts, run_folder
from sft_hydra.launch.slurm import all_or_nothing, submit
from sft_hydra.launch.sweep_jobs import Job
from sft_hydra.schema.config import SftConfig


def plan_jobs(jobs: Sequence[Job]) -> None:
    """Print the plans and the exact batch scripts in the order of submission (`dry_run=true`)."""
    local.plan_jobs(jobs)
    try:
        preparing, ready = data_prep_jobs([job.cfg for job in jobs])
    except MissingPackedDataError:
        raise
    except DataError as error:  # the tokenizer is not available
        print(f"\ncannot determine which data must be prepared first: {error}")
        preparing, ready = [], [job.cfg for job in jobs]
    for each in preparing:
        _show_scripts("prepares data", each.parts)
        _show_scripts("finishes the data", [each.finish], each.runs)
        _show_scripts("starts when the data is there", each.runs)
    _show_scripts("runs", ready)


def run_jobs(jobs: Sequence[Job]) -> list[SlurmJob]:
    """Submit the jobs and print their folders and logs; with `cluster.attach`, wait until they have ended.

    Exits with code 1 if a job that was waited for did not succeed.
    """
    handles = submit_with_data([job.cfg for job in jobs])
    for handle in handles:
        print(f"job {handle.job_id}  {os.path.relpath(handle.folder)}  log {os.path.relpath(handle.log)}")
    if not jobs[0].cfg.cluster.attach:
        print(ways_back(handles))
    elif not attach(handles, lambda text: print(text, end="", flush=True)):
        raise SystemExit(1)
    return handles


def submit_with_data(cfgs: Sequence[SftConfig]) -> list[SlurmJob]:
    """Submit runs; those whose packed set is missing start after the jobs that prepare it have succeeded."""
    preparing, ready = data_prep_jobs(cfgs)
    handles: list[SlurmJob] = []
    with all_or_nothing(handles):
        for each in preparing:
            last = _submit_preparation(each, handles)
            handles += submit(each.runs, dependency=f"afterok:{last.job_id}")
        handles += submit(ready) if ready else []
    by_folder = {handle.folder: handle for handle in handles}
    return [by_folder[run_folder(cfg)] for cfg in cfgs]


def _submit_preparation(preparation: DataPrepJob, handles: list[SlurmJob]) -> SlurmJob:
    """The job that finishes the packed set; an active one is reused."""
    under_way = find_job(run_folder(preparation.finish))
    if under_way is not None and job_state(under_way).is_active:
        print(f"data is being prepared: job {under_way.job_id}  {os.path.relpath(under_way.folder)}")
        return under_way
    parts = submit(preparation.parts) if preparation.parts else []
    handles += parts
    array = parts[0].job_id.split("_")[0] if parts else None
    dependency = f"afterany:{array}" if array else None
    [finish] = submit([preparation.finish], dependency=dependency, dependents=preparation.runs)
    handles.append(finish)
    helpers = f", after {len(parts)} jobs of array {array}" if parts else ""
    print(f"data is prepared first: job {finish.job_id}{helpers}  {os.path.relpath(finish.folder)}")
    return finish


def _show_scripts(title: str, cfgs: Sequence[SftConfig], dependents: Sequence[SftConfig] = ()) -> None:
    for script in batch_scripts(cfgs, dependents):
        print(f"== {title}: batch script of {len(script.cfgs)} job(s), saved in {script.folder}\n{script.text}")
