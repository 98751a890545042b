"""Runs programs written by a model, each in a separate process: limited in time and memory, without network, file writes or
child processes (see code_sandbox_child.py).

Invariant: whatever the program does, the caller gets a verdict within the time limit, and `passed` only if the program
ran to its end: a random token says so, which is drawn here for each program and which the program cannot reach.
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
MOST_ANSWER = 4096  # bytes; a verdict is shorter, so what goes on writing is ended
FAILED = b"failed "


def run_programs(programs: Sequence[str], seconds: int = SECONDS) -> list[str]:
    """`run_program` for each program, as many in parallel as there are processors."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda program: run_program(program, seconds), programs))


def run_program(program: str, seconds: int = SECONDS) -> str:
    """`passed` if it runs to its end, else what it raised, `time limit`, or how it died."""
    token = secrets.token_hex(16).encode()
    with TemporaryDirectory(prefix="sft_hydra_answer_") as folder, TemporaryFile() as given:
        given.write(token + b"\n" + program.encode("utf-8", "replace"))
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD), str(seconds), str(MEMORY)],
            stdin=given,
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
    """What the child writes, up to MOST_ANSWER bytes. TimeoutError if it neither ends nor writes that much in time."""
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
    """Kill the child, with what it may have started, and take its exit status."""
    with suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()
    process.wait()


def _verdict(answer: bytes, token: bytes, code: int) -> str:
    if answer == token:
        return "passed"
    if len(answer) >= MOST_ANSWER:
        return "wrote too much where its verdict goes"
    if answer.startswith(FAILED):
        return answer.removeprefix(FAILED).decode("utf-8", "replace")
    if answer:
        return "wrote where its verdict goes"
    return "time limit" if code in (-signal.SIGXCPU, -signal.SIGKILL) else f"died ({code})"
