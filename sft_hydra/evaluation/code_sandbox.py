"""Runs programs that a model wrote, each in a process of its own: limited in time and memory, without network, unable to
write files or to start processes (see sandbox_child.py).

Invariant: whatever the program does, the caller gets a verdict within the time limit.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

CHILD = Path(__file__).with_name("sandbox_child.py")
SECONDS = 5  # of processor time
PATIENCE = 3  # times as long by the clock, for a machine that is busy
MEMORY = 1 << 30  # bytes of address space


def run_programs(programs: Sequence[str], seconds: int = SECONDS) -> list[str]:
    """Verdicts: `passed`, or why not, one each. As many at a time as there are processors."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda program: run_program(program, seconds), programs))


def run_program(program: str, seconds: int = SECONDS) -> str:
    """`passed` if it runs to its end, else what it raised, `time limit`, or how it died."""
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
            told, _ = process.communicate(program.encode("utf-8", "replace"), timeout=seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return "time limit"
    if told:
        return told.decode("utf-8", "replace")
    return "time limit" if process.returncode in (-24, -9) else f"died ({process.returncode})"  # SIGXCPU, SIGKILL
