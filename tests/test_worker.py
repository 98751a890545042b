"""Starting ranks by hand, and stopping a run in the terminal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from support.waiting import until

from sft_hydra.config import serialize
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.runners import Runner

SMALL = (
    "name=run", "train.train_iters=2000", "eval.every=0", "eval.exact_match.path=null", "eval.samples=[]", "seq_length=256",
    "data.sample=100", "data.num_workers=1", "train.num_threads=1", "train.micro_batch_size=1", "device=cpu",
)  # fmt: skip


def test_ctrl_c_saves_after_the_step_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sft_hydra", *SMALL, "checkpoint.interval=null", "train.global_batch_size=1"]
    run = tmp_path / "outputs" / "run"
    for attempt in (1, 2):
        begun = len(steps(run))
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        until(lambda: len(steps(run)) > begun + 5, process)  # noqa: B023
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
        assert process.returncode == 1
        last = steps(run)[-1]
        assert output.splitlines()[-1] == f"stopped at step {last} of 2000; rerun the same command to resume"
        assert (run / "checkpoints" / f"step_{last}").is_dir(), attempt
    assert steps(run) == list(range(1, last + 1))


def steps(run: Path) -> list[int]:
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row["step"] for row in rows if "loss" in row]


def test_a_wrong_number_of_ranks_is_refused(tmp_path: Path) -> None:
    several = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    serialize.save(
        SftConfig(runner=Runner.export, model=ModelConfig(name="tiny"), run_dir=str(tmp_path)), tmp_path / "export.yaml"
    )
    command = [sys.executable, "-m", "sft_hydra.worker", str(tmp_path / "export.yaml")]
    done = subprocess.run(command, env={**os.environ, **several}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "2 ranks were started" in done.stderr
    assert "need 1 for runner=export" in done.stderr


def test_the_command_line_itself_is_no_rank(tmp_path: Path) -> None:
    several = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "sft_hydra"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **several}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torchrun -m sft_hydra.worker <resolved.yaml>" in done.stderr
    assert list(tmp_path.iterdir()) == []
