"""Two trainings never write into one folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from sft_hydra.cli import command
from sft_hydra.config.run_folder import lock_run
from sft_hydra.errors import ConfigError
from sft_hydra.paths import RunPaths

HOLDER = """
import sys, time
from pathlib import Path
from sft_hydra.paths import RunPaths
from sft_hydra.config.run_folder import lock_run
with lock_run(RunPaths(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_training_in_a_folder_is_refused_until_the_first_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "mine"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"outputs/mine: this folder is in use by another training"):
            command(["name=mine", "data.sample=20", "data.num_workers=1"])
        assert not list((tmp_path / "outputs").glob("data/*"))  # before any work
        first.kill()
    with lock_run(RunPaths(folder)):
        pass
