"""Jobs on a real Slurm: what is asked for arrives, what fails is told, what is interrupted comes back."""

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from support.cluster import MakeRun, cluster, finish
from support.waiting import until

from sft_hydra.errors import ClusterError
from sft_hydra.launch.job import JobState, SlurmJob, find_job, job_state
from sft_hydra.launch.job_log import wait
from sft_hydra.launch.script import batch_scripts
from sft_hydra.launch.slurm import submit
from sft_hydra.schema.config import SftConfig

SHOW = """
import json, os, sys
from pathlib import Path
rank = os.environ["RANK"]
(Path(sys.argv[1]).parent / f"seen_{rank}.json").write_text(json.dumps({**os.environ, "cwd": os.getcwd()}))
"""


def seen(cfg: SftConfig, rank: int) -> dict[str, str]:
    return json.loads((Path(str(cfg.run_dir)) / f"seen_{rank}.json").read_text())


def test_every_rank_knows_its_place_and_gets_what_the_profile_says(
    slurm: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "from the shell")
    monkeypatch.setenv("UNNAMED", "stays behind")
    # as if submitted from inside an allocation, whose variables contradict the job's
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "7")
    monkeypatch.setenv("SBATCH_MEM_PER_NODE", "9")
    cfg = make_run(
        SHOW, nodes=2, gpus_per_node=2, cpus_per_task=3, env={"GREETING": "it's me"}, setup=["export FROM_SETUP=yes"],
        container_image="image.sqsh", container_mounts=["/data:/data:ro"],
    )  # fmt: skip
    [handle] = submit([cfg])
    state, log = finish(handle)
    assert state.name == "COMPLETED", log
    ranks = [seen(cfg, rank) for rank in range(4)]
    assert [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1", "0", "1"]
    assert {(rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"], rank["SLURM_CPUS_PER_TASK"]) for rank in ranks} == {
        ("4", "2", "3")
    }
    assert {rank["CUDA_VISIBLE_DEVICES"] for rank in ranks} == {"0,1"}
    assert {(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in ranks} == {
        (ranks[0]["SLURMD_NODENAME"], ranks[0]["MASTER_PORT"])
    }
    assert ranks[3]["SFT_HYDRA_HOSTS"].split(",")[1] == ranks[3]["SLURMD_NODENAME"]
    assert {(r["GREETING"], r["FROM_SETUP"], r["HF_TOKEN"], r["cwd"]) for r in ranks} == {
        ("it's me", "yes", "from the shell", os.getcwd())
    }
    assert "UNNAMED" not in ranks[0]
    assert ranks[3]["PYXIS_CONTAINER_IMAGE"] == "image.sqsh"
    assert ranks[3]["PYXIS_CONTAINER_MOUNTS"] == f"{os.getcwd()}:{os.getcwd()},/data:/data:ro"
    written = [file.read_text() for file in Path("outputs").rglob("*") if file.is_file() and "seen" not in file.name]
    assert not any("from the shell" in text for text in written)


def test_slurm_accepts_the_script_and_a_refusal_is_told(slurm: Path, make_run: MakeRun, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(batch_scripts([make_run(SHOW, nodes=2, gpus_per_node=8)])[0].text)
    subprocess.run(["sbatch", "--test-only", script], check=True)
    with pytest.raises(ClusterError, match="invalid partition"):
        submit([make_run(SHOW, partition="nowhere")])
    assert find_job(Path("outputs/run")) is None


FAIL = """
import os, sys, time
from pathlib import Path
from sft_hydra.process.rank import rank_output, this_rank
from sft_hydra.paths import RunPaths
rank = this_rank()
with rank_output(rank, RunPaths(Path(sys.argv[1]).parent)):
    print(f"rank {rank.rank} speaks")
    if rank.rank == 3:
        raise ValueError("the disk of rank 3 is full")
    time.sleep(600)
"""


def test_a_failing_rank_ends_the_job_and_tells_why(slurm: Path, make_run: MakeRun) -> None:
    [handle] = submit([make_run(FAIL, nodes=2, gpus_per_node=2)])
    state, log = finish(handle)
    assert (state.name, state.detail) == ("FAILED", "NonZeroExitCode") or state.name == "FAILED"
    assert "rank 3 of 4" in log
    assert "ValueError: the disk of rank 3 is full" in log
    assert "rank 0 speaks" in log
    assert "rank 1 speaks" not in log
    assert (handle.folder / "ranks" / "1.txt").read_text() == "rank 1 speaks\n"


COUNT = """
import os, sys, time
from pathlib import Path
from sft_hydra.process import signals as stop
run = Path(sys.argv[1]).parent
stop.install_handlers()
saved = sorted(int(folder.name[5:]) for folder in run.glob("checkpoints/step_*"))
step = saved[-1] if saved else 0
if os.environ["RANK"] == "0":
    print(f"from step {step}")
    with (run / "starts").open("a") as file:
        file.write(f"{step}\\n")
while step < 1000 and not (run / "enough").exists():
    time.sleep(0.05)
    step += 1
    if stop.stop_requested():
        if os.environ["RANK"] == "0":
            (run / "checkpoints" / f"step_{step}").mkdir(parents=True)
            (run / "stopped").touch()
        sys.exit(1)
"""


def starts(cfg: SftConfig) -> list[int]:
    file = Path(str(cfg.run_dir)) / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_a_job_told_of_its_time_limit_comes_back_and_goes_on(slurm: Path, make_run: MakeRun) -> None:
    cfg = make_run(COUNT, nodes=2, gpus_per_node=1)
    [handle] = submit([cfg])
    until(lambda: len(starts(cfg)) == 1)
    # what --signal=B:USR2@... does when the time comes
    subprocess.run(["scancel", "--batch", "--signal=USR2", handle.job_id], check=True)
    until(lambda: len(starts(cfg)) == 2)
    (handle.folder / "enough").touch()
    state, log = finish(handle)
    assert state.name == "COMPLETED", log
    assert starts(cfg)[1] > 0
    assert "is requeued" in log
    assert not (handle.folder / "stopped").exists()


@pytest.mark.slow
def test_slurm_tells_a_job_of_its_time_limit(slurm: Path, make_run: MakeRun) -> None:
    cfg = make_run(COUNT, nodes=2, gpus_per_node=1, time="1", stop_seconds=50)
    [handle] = submit([cfg])
    until(lambda: len(starts(cfg)) == 2)
    (handle.folder / "enough").touch()
    assert finish(handle)[0].name == "COMPLETED"
    assert starts(cfg)[1] > 0


@pytest.mark.slow
def test_a_job_survives_its_node(slurm: Path, make_run: MakeRun) -> None:
    cfg = make_run(COUNT, gpus_per_node=1)
    [handle] = submit([cfg])
    until(lambda: len(starts(cfg)) == 1)
    node = job_state(handle).detail
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    until(lambda: len(starts(cfg)) == 2)  # the node comes back by itself (ReturnToService)
    (handle.folder / "enough").touch()
    assert finish(handle)[0].name == "COMPLETED"


def test_a_preempted_job_comes_back_and_goes_on(slurm: Path, make_run: MakeRun) -> None:
    cfg = make_run(COUNT, nodes=2, gpus_per_node=1, partition="low")
    [handle] = submit([cfg])
    until(lambda: len(starts(cfg)) == 1)
    subprocess.run(["srun", "--partition=high", "--nodes=4", "--exclusive", "true"], check=True)
    until(lambda: len(starts(cfg)) == 2)
    (handle.folder / "enough").touch()
    assert finish(handle)[0].name == "COMPLETED"
    assert starts(cfg)[1] > 0


def test_a_cancelled_job_saves_and_stays_down(slurm: Path, make_run: MakeRun) -> None:
    cfg = make_run(COUNT)
    [handle] = submit([cfg])
    until(lambda: len(starts(cfg)) == 1)
    handle.cancel()
    assert wait(handle).name == "CANCELLED"
    assert (handle.folder / "stopped").exists()
    time.sleep(1)
    assert job_state(handle).name == "CANCELLED"
    [again] = submit([cfg])
    until(lambda: len(starts(cfg)) == 2)
    assert starts(cfg)[1] > 0
    again.cancel()


IDLE = """
import sys
from pathlib import Path
(Path(sys.argv[1]).parent / "stopped").touch()
sys.exit(1)
"""


@pytest.mark.slow
def test_a_job_that_saves_nothing_does_not_come_back_for_ever(slurm: Path, make_run: MakeRun) -> None:
    [handle] = submit([make_run(IDLE, gpus_per_node=1)])
    state, log = finish(handle)
    assert state.name == "FAILED"
    assert log.count("is requeued") == 2
    assert "the last two attempts saved no checkpoint" in log


def test_a_sweep_is_one_array_for_each_size(slurm: Path, make_run: MakeRun) -> None:
    runs = []
    for name, ranks in (("a", 1), ("b", 2), ("c", 1)):
        cfg = make_run(SHOW, "sweep", gpus_per_node=ranks, max_parallel=1)
        runs.append(dataclasses.replace(cfg, run_dir=f"outputs/sweep/{name}"))
    handles = submit(runs)
    assert [wait(handle).name for handle in handles] == ["COMPLETED"] * 3
    assert [handle.folder.name for handle in handles] == ["a", "b", "c"]
    first, second, third = (handle.job_id for handle in handles)
    assert (first.split("_")[0], third) == (third.split("_")[0], f"{first.split('_')[0]}_1")
    assert "_" not in second
    assert [seen(cfg, 0)["WORLD_SIZE"] for cfg in runs] == ["1", "2", "1"]
    assert all(handle.log.exists() for handle in handles)


def test_a_run_with_a_job_is_not_submitted_twice(slurm: Path, make_run: MakeRun) -> None:
    cfg = make_run(COUNT)
    [handle] = submit([cfg])
    with pytest.raises(ClusterError, match=f"its job {handle.job_id} is"):
        submit([cfg])
    handle.cancel()


def test_a_job_waits_for_another_and_falls_with_it(slurm: Path, make_run: MakeRun) -> None:
    [first] = submit([make_run("raise SystemExit(1)", "first")])
    [second] = submit([make_run(SHOW, "second")], dependency=f"afterok:{first.job_id}")
    assert wait(first).name == "FAILED"
    assert wait(second).name == "CANCELLED"


def test_a_failing_set_up_line_is_named(slurm: Path, make_run: MakeRun) -> None:
    state, log = finish(submit([make_run(SHOW, setup=["ls /nowhere", "echo not reached"])])[0])
    assert state.name == "FAILED"
    assert "set-up failed: ls /nowhere" in log
    assert "not reached" not in log


def test_a_job_nobody_knows_any_more(slurm: Path, tmp_path: Path) -> None:
    handle = SlurmJob(folder=tmp_path, job_id="999999", log=tmp_path / "log")
    assert job_state(handle) == JobState("UNKNOWN", "Slurm has no record of the job")
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "exit_code").write_text("0\n")
    assert job_state(handle).name == "COMPLETED"


def test_without_accounting(repo: Path, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster(repo, tmp_path / "cluster", NODES="1", ACCOUNTING="0") as conf:
        monkeypatch.setenv("SLURM_CONF", str(conf))
        [handle] = submit([make_run(SHOW)])
        assert wait(handle).name == "COMPLETED"
        lost = SlurmJob(folder=tmp_path, job_id="999999", log=tmp_path / "log")
        state = job_state(lost)
    assert state.name == "UNKNOWN"
    assert "accounting storage is disabled" in state.detail
