"""Fixtures: a real Slurm for the session, and runs to submit to it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import MakeRun, cluster

from sft_hydra.schema.cluster import ClusterConfig, ClusterKind
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.model import ModelConfig


@pytest.fixture(scope="session")
def slurm_conf(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cluster(repo, tmp_path_factory.mktemp("slurm"), NODES="4", PYXIS="1") as conf:
        yield conf


@pytest.fixture
def slurm(slurm_conf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The session's cluster, and this test's processes talk to it: 4 nodes of 8 pretended GPUs, with accounting."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    return slurm_conf


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Runs for Slurm whose ranks are a small Python program instead of a training."""
    monkeypatch.chdir(tmp_path)

    def make(program: str, name: str = "run", **settings: object) -> SftConfig:
        source, interpreter = tmp_path / f"{name}.py", tmp_path / f"{name}.sh"
        source.write_text(program)
        interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {source} "$3"\n')  # $1 $2 are -m sft_hydra.worker
        interpreter.chmod(0o755)
        options = {"nodes": 1, "gpus_per_node": 2, "time": "5", "python": str(interpreter), **settings}
        cluster_config = ClusterConfig(kind=ClusterKind.slurm, **options)  # type: ignore[arg-type]
        return SftConfig(name=name, run_dir=f"outputs/{name}", cluster=cluster_config, model=ModelConfig(name="tiny"))

    return make
