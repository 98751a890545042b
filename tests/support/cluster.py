"""A real Slurm on this machine, started by tests/slurm/start.sh."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sft_hydra.launch.job import JobState, SlurmJob
from sft_hydra.launch.job_log import follow
from sft_hydra.schema.config import SftConfig

COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd", "gcc")
MakeRun = Callable[..., SftConfig]


@contextmanager
def cluster(repo: Path, folder: Path, **settings: str) -> Iterator[Path]:
    """A Slurm that lives as long as the context; yields its slurm.conf. The test skips where it cannot be."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing or os.geteuid() != 0:
        reason = f"needs root and Slurm's packages, see tests/slurm/start.sh (missing: {' '.join(missing) or 'root'})"
        assert "SFT_HYDRA_CI" not in os.environ, reason
        pytest.skip(reason)
    script = repo / "tests" / "slurm" / "start.sh"
    environment = {**os.environ, "PORT": str(_free_ports()), **settings}
    try:
        subprocess.run([script, "start", folder], env=environment, check=True)
        yield folder / "slurm.conf"
    finally:
        subprocess.run([script, "stop", folder], env=environment, check=True)


def _free_ports() -> int:
    """The first of a block of ports that nobody listens on."""
    for first in range(17000, 30000, 20):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", first)):
                return first
    raise AssertionError("no free ports")


def finish(handle: SlurmJob) -> tuple[JobState, str]:
    """The last state of a job and all it printed."""
    pieces: list[str] = []
    return follow(handle, pieces.append), "".join(pieces)
