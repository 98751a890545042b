"""Small runs of the command itself, in processes that may be killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import SMALL

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """start("train.train_iters=5", variables={...}): the command of a tiny training in `tmp_path`, as a process group."""

    def run(*overrides: str, variables: dict[str, str] | None = None, cwd: Path = tmp_path) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})}
        return subprocess.Popen(
            [sys.executable, "-m", "sft_hydra", *SMALL, *overrides],
            cwd=cwd,
            env=environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return run
