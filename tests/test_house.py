"""The house itself: import layers hold, what the login node runs never loads torch, arguments are narrow."""

import re
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


@pytest.mark.parametrize("room", ["engine", "checkpoint", "models"])
def test_rooms_of_training_take_sections_and_values_not_the_whole_config(repo: Path, room: str) -> None:
    files = list((repo / "sft_hydra" / room).rglob("*.py"))
    assert files
    wide = [str(file.relative_to(repo)) for file in files if re.search(r"\bSftConfig\b", file.read_text())]
    assert not wide, (
        f"take the section or value that is needed (planning/recipe.py has those of a training step): {wide}"
    )
