"""Several ranks on this machine: they find each other, speak with one voice, fail as one and stop as one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.waiting import until

START = "import sys; from sft_hydra.launch.local_ranks import start_ranks; sys.exit(start_ranks(sys.argv[2:], int(sys.argv[1])))"

RANK = """
import os, sys, time
from pathlib import Path
from sft_hydra.process import signals as stop
from sft_hydra.process.rank import rank_output, this_rank
from sft_hydra.paths import RunPaths
rank, run = this_rank(), Path(sys.argv[1])
stop.install_handlers()
"""
JOIN = """
import torch
from sft_hydra.parallel.rendezvous import start_process_group, stop_process_group, stop_requested
start_process_group(torch.device("cpu"), timeout=20)
"""


def launch(tmp_path: Path, program: str, ranks: int) -> subprocess.Popen[str]:
    source = tmp_path / "rank.py"
    source.write_text(RANK + program)
    command = [sys.executable, "-c", START, str(ranks), sys.executable, str(source), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate()
    return process.returncode, output


def test_ranks_meet_and_only_the_first_speaks(tmp_path: Path) -> None:
    program = f"""
with rank_output(rank, RunPaths(run)):
    {JOIN.strip().replace(chr(10), chr(10) + "    ")}
    total = torch.tensor([rank.rank + 1])
    torch.distributed.all_reduce(total)
    print(f"rank {{rank.rank}} of {{rank.world_size}}: sum {{total.item()}}")
    stop_process_group()
"""
    code, output = finished(launch(tmp_path, program, 2))
    assert (code, output) == (0, "rank 0 of 2: sum 3\n")
    assert (tmp_path / "ranks" / "1.txt").read_text() == "rank 1 of 2: sum 3\n"


def test_nobody_else_gets_the_port_while_ranks_start(tmp_path: Path) -> None:
    """A port that was only looked up could be taken by another program while rank 0 imported torch."""
    program = f"""
import os, socket
if rank.rank == 1:
    try:
        socket.socket().bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
        sys.exit("the port was free")
    except OSError:
        pass
{JOIN}
stop_process_group()
"""
    code, output = finished(launch(tmp_path, program, 2))
    assert (code, output) == (0, "")


def test_a_port_in_use_is_named() -> None:
    """As under Slurm, where the port is computed from the id of the job."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        environment = {**os.environ, **ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = subprocess.run(
            [sys.executable, "-c", JOIN], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
    assert f"cannot serve the other ranks at 127.0.0.1:{port}" in done.stderr
    assert "set MASTER_PORT to a free one" in done.stderr


def test_a_rank_ends_without_its_process_group(tmp_path: Path) -> None:
    """gloo's threads can abort an interpreter that shuts down with one: the run had succeeded, and rank 3 of 8 "was killed"."""
    program = f"""
import atexit
{JOIN}
from sft_hydra.worker import end_process
atexit.register(lambda: (run / f"{{rank.rank}}.{{torch.distributed.is_initialized()}}").touch())
end_process(0)
"""
    code, output = finished(launch(tmp_path, program, 2))
    assert code == 0, output
    assert {file.name for file in tmp_path.glob("[01].*")} == {"0.False", "1.False"}


def test_the_first_failing_rank_is_told_in_full_and_ends_the_others(tmp_path: Path) -> None:
    program = """
with rank_output(rank, RunPaths(run)):
    if rank.rank == 2:
        raise ValueError("bad luck")
    time.sleep(1 if rank.rank == 1 else 600)
    raise ConnectionError("a neighbour is gone")
"""
    code, output = finished(launch(tmp_path, program, 3))
    assert code == 1
    told = output.index("rank 2 of 3 on"), output.index("ValueError: bad luck"), output.index("rank 1 of 3 on")
    assert list(told) == sorted(told)
    assert "failed too: ConnectionError" in output
    assert "a neighbour is gone" not in output
    assert "a neighbour is gone" in (tmp_path / "ranks" / "1.txt").read_text()


def test_a_mistake_of_the_user_is_told_once_and_keeps_its_exit_code(tmp_path: Path) -> None:
    program = """
from sft_hydra.errors import DataError, UserError
try:
    with rank_output(rank, RunPaths(run)):
        raise DataError("data.path=x.jsonl: no such file")
except UserError:
    sys.exit(2)
"""
    code, output = finished(launch(tmp_path, program, 3))
    assert code == 2
    assert output.count("no such file") == 1
    assert "Traceback" not in output


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    program = """
if rank.rank == 1:
    os.kill(os.getpid(), 9)
time.sleep(600)
"""
    code, output = finished(launch(tmp_path, program, 2))
    assert (code, output) == (1, "rank 1 of 2 was killed by SIGKILL\n")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_all_ranks_after_the_same_step(tmp_path: Path, kind: signal.Signals) -> None:
    program = f"""
{JOIN}
with stop.finish_step_on_interrupt():
    for step in range(10_000):
        time.sleep(0.01 * (1 + rank.rank))  # they are not in step by themselves
        if step == 3:
            (run / f"going_{{rank.rank}}").touch()
        if stop_requested():
            (run / f"stopped_{{rank.rank}}").write_text(str(step))
            sys.exit(1)
"""
    process = launch(tmp_path, program, 2)
    until(lambda: len(list(tmp_path.glob("going_*"))) == 2, process)
    process.send_signal(kind)
    assert finished(process)[0] == 1
    steps = {file.read_text() for file in tmp_path.glob("stopped_*")}
    assert len(list(tmp_path.glob("stopped_*"))) == 2
    assert len(steps) == 1


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    program = """
with stop.finish_step_on_interrupt():
    (run / f"going_{rank.rank}").touch()
    while True:
        time.sleep(600)  # a step that never ends
"""
    process = launch(tmp_path, program, 2)
    until(lambda: len(list(tmp_path.glob("going_*"))) == 2, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 1


def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    program = """
os.environ["SFT_HYDRA_HOSTS"] = "north,south"
os.environ["LOCAL_WORLD_SIZE"] = "1"
if rank.rank == 1:
    time.sleep(600)
with rank_output(this_rank(), RunPaths(run)):
    """ + JOIN.strip().replace("\n", "\n    ").replace("timeout=20", "timeout=2")
    code, output = finished(launch(tmp_path, program, 2))
    assert code == 1
    assert "1 of 2 ranks did not start in time: rank 1 on south" in output


def test_ranks_that_cannot_talk_say_so(tmp_path: Path) -> None:
    program = """
from sft_hydra.parallel import rendezvous as process
if rank.rank == 1:
    process._first_all_reduce = lambda *_: time.sleep(600)
with rank_output(rank, RunPaths(run)):
    """ + JOIN.strip().replace("\n", "\n    ").replace("timeout=20", "timeout=3")
    code, output = finished(launch(tmp_path, program, 2))
    assert code == 1
    assert "all ranks have started but cannot communicate (no answer within 3 s)" in output


def test_the_launcher_needs_no_torch() -> None:
    check = "import sys, sft_hydra.launch.local_ranks, sft_hydra.launch.slurm, sft_hydra.jobs; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], check=False)
    assert done.returncode == 0


def test_a_slow_rank_is_waited_for(tmp_path: Path) -> None:
    program = f"""
with rank_output(rank, RunPaths(run)):
    {JOIN.strip().replace(chr(10), chr(10) + "    ")}
    for step in range(3):
        time.sleep(1.5 * rank.rank)
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        assert total == 2
    torch.distributed.destroy_process_group()
    (run / f"{{rank.rank}}.done").touch()
"""
    code, output = finished(launch(tmp_path, program, 2))
    assert code == 0, output
    assert len(list(tmp_path.rglob("*.done"))) == 2


def test_a_rank_that_hangs_ends_the_others_in_time(tmp_path: Path) -> None:
    program = f"""
from sft_hydra.parallel import rendezvous as process
process.COLLECTIVE_MINUTES = 0.05
with rank_output(rank, RunPaths(run)):
    {JOIN.strip().replace(chr(10), chr(10) + "    ")}
    if rank.rank == 1:
        time.sleep(600)
    torch.distributed.all_reduce(torch.zeros(1))
"""
    code, output = finished(launch(tmp_path, program, 2))
    assert code == 1
    assert "rank 0" in output
    assert "Timed out" in output
