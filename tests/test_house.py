"""The house itself: import layers hold, and what the login node runs never loads torch."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_import_layers_hold(repo: Path) -> None:
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    ["sft_hydra.cli", "sft_hydra.launch.dry_run", "sft_hydra.data_prep.prepare", "sft_hydra.demo.conversations"],
)
def test_the_login_node_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
