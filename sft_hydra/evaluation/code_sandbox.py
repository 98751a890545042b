"""Runs programs written by a model, each in a separate process: limited in time and memory, without network, file writes or
child processes (see code_sandbox_child.py).

Invariant: whatever the program does, the caller gets a verdict within the time limit.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

CHILD = Path(__file__).with_name("code_sandbox_child.py")
SECONDS = 5  # of processor time
WALL_CLOCK_FACTOR = 3  # wall-clock limit over processor time, for a busy machine
MEMORY = 1 << 30  # bytes of address space


def run_programs(programs: Sequence[str], seconds: int = SECONDS) -> list[str]:
    """`run_program` for each program, as many in parallel as there are processors."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda program: run_program(program, seconds), programs))


def run_program(program: str, seconds: int = SECONDS) -> str:
    """`passed` if the program runs to its end, else its exception, `time limit`, or `died (<return code>)`.

    `seconds`: limit of processor time.
    """
    with TemporaryDirectory(prefix="sft_hydra_answer_") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD), str(seconds), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        try:
            verdict, _ = process.communicate(program.encode("utf-8", "replace"), timeout=seconds * WALL_CLOCK_FACTOR)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return "time limit"
    if verdict:
        return verdict.decode("utf-8", "replace")
    return "time limit" if process.returncode in (-24, -9) else f"died ({process.returncode})"  # SIGXCPU, SIGKILL
