"""Data preparation as separate Slurm jobs on CPUs, before the runs that need it, so that no GPU waits for tokenization.

For each missing packed set: an array of CPU jobs that tokenize, one job that finishes (and redoes the work of lost parts),
then the runs. Reads the file system, writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sft_hydra.data_prep.prepare import missing, open_existing, packed_folder
from sft_hydra.data_prep.sources import files_of, sources_of
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import Prepare
from sft_hydra.schema.runners import Runner

CPUS = 16  # per job, if data.num_workers is null
BYTES_PER_PART = 1 << 30
MAX_PARTS = 32


@dataclass(frozen=True, slots=True)
class DataPrepJob:
    """Jobs that prepare one packed set, and the runs that depend on it."""

    parts: list[SftConfig]
    """Runs that tokenize one part each; empty if one machine is enough."""
    finish: SftConfig
    """The run that packs the parts."""
    runs: list[SftConfig]
    """Runs that start after `finish`."""


def data_prep_jobs(cfgs: Sequence[SftConfig]) -> tuple[list[DataPrepJob], list[SftConfig]]:
    """(preparation jobs, runs that need no preparation). MissingPackedDataError if data is missing and
    `data.prepare=never`."""
    groups: dict[Path, list[SftConfig]] = {}
    ready = []
    for cfg in cfgs:
        if cfg.runner is not Runner.train or (not cfg.data.force and open_existing(cfg) is not None):
            ready.append(cfg)
        elif cfg.data.prepare is Prepare.never:
            raise missing(cfg)
        else:
            groups.setdefault(packed_folder(cfg), []).append(cfg)
    return [_data_prep_job(folder, runs) for folder, runs in groups.items()], ready


def _data_prep_job(folder: Path, runs: list[SftConfig]) -> DataPrepJob:
    cfg = runs[0]
    workers = cfg.data.num_workers or CPUS
    cluster = replace(
        cfg.cluster,
        partition=cfg.cluster.cpu_partition or cfg.cluster.partition,
        cpus_per_task=workers,
        mem=None,
        exclusive=False,
        sbatch_args=[],
    )
    prep_folder = folder.with_name(f"{folder.name}.prep")
    finish = replace(
        cfg,
        runner=Runner.data_prep,
        name=f"prepare-{cfg.name}",
        run_dir=str(prep_folder),
        cluster=cluster,
        data=replace(cfg.data, num_workers=workers),
    )
    count = 1 if cfg.data.force else cfg.data.num_parts or _parts_by_size(cfg)
    parts = [
        replace(
            finish, run_dir=str(prep_folder / f"part_{part}"), data=replace(finish.data, part=part, num_parts=count)
        )
        for part in range(count if count > 1 else 0)
    ]
    dependents = [replace(run, data=replace(run.data, force=False)) for run in runs]  # data is new when they start
    return DataPrepJob(parts, finish, dependents)


def _parts_by_size(cfg: SftConfig) -> int:
    files = [Path(file.path) for source in sources_of(cfg.data) for file in files_of(source)]
    size = sum(file.stat().st_size for file in files if file.is_file())  # sizes of hub files are unknown
    return max(1, min(MAX_PARTS, size // BYTES_PER_PART))
