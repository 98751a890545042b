"""Runs programs written by a model, each in a separate process: limited in time and memory, without network, file writes or
child processes (see code_sandbox_child.py).

Invariant: whatever the program does, the caller gets a verdict within the time limit, and `passed` only if the program ran to
its end. The child reports this with a random token, generated here for each program, which the program cannot read.
"""

import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

CHILD = Path(__file__).with_name("code_sandbox_child.py")
SECONDS = 5  # of processor time
WALL_CLOCK_FACTOR = 3  # wall-clock limit over processor time, for a busy machine
MEMORY = 1 << 30  # bytes of address space
MOST_ANSWER = 4096  # bytes; a verdict is shorter, so a child that writes this much is killed
FAILED = b"failed "


def run_programs(programs: Sequence[str], seconds: int = SECONDS) -> list[str]:
    """`run_program` for each program, one per processor in parallel."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda program: run_program(program, seconds), programs))


def run_program(program: str, seconds: int = SECONDS) -> str:
    """The verdict: `passed` if the program runs to its end, else its exception, `time limit`, or how it died. `seconds`: limit
    of processor time."""
    token = secrets.token_hex(16).encode()
    with TemporaryDirectory(prefix="sft_hydra_answer_") as folder, TemporaryFile() as program_file:
        program_file.write(token + b"\n" + program.encode("utf-8", "replace"))
        program_file.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD), str(seconds), str(MEMORY)],
            stdin=program_file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        deadline = time.monotonic() + seconds * WALL_CLOCK_FACTOR
        try:
            answer = _read(process, deadline)
            if len(answer) < MOST_ANSWER:
                process.wait(max(0.1, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            return "time limit"
        finally:
            _end(process)
    return _verdict(answer, token, process.returncode)


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """The output of the child, up to MOST_ANSWER bytes. TimeoutError if it does not finish by the deadline."""
    assert process.stdout is not None
    answer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(answer) < MOST_ANSWER:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            part = os.read(process.stdout.fileno(), MOST_ANSWER - len(answer))
            if not part:
                break
            answer += part
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child's process group and read its exit status."""
    with suppress(ProcessLookupError):  # it has ended already
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()
    process.wait()


def _verdict(answer: bytes, token: bytes, code: int) -> str:
    if answer == token:
        return "passed"
    if len(answer) >= MOST_ANSWER:
        return "wrote too much to the verdict pipe"
    if answer.startswith(FAILED):
        return answer.removeprefix(FAILED).decode("utf-8", "replace")
    if answer:
        return "wrote to the verdict pipe"
    return "time limit" if code in (-signal.SIGXCPU, -signal.SIGKILL) else f"died ({code})"
