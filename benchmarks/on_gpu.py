"""All that is to be measured on one GPU, in one command and a given time: tests marked `gpu`, training steps, longest rows.

    python benchmarks/on_gpu.py CHAT_FOLDER TOKENIZER_FOLDER [--minutes 9.5] [--only train_step] [--dry-run]

Runs what matters most first, each in a process of its own and within a limit; what there is no time left for is left out. Each
writes its own file in benchmarks/results, and this one on_gpu.json, anew after each: what ran, how long, how it ended; what it
said is in on_gpu.log. Peers (TRL, transformers) take part where they are installed. Nothing is fetched from a network.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPO = HERE.parent
RESULTS = HERE / "results"
SHORTEST = 20.0  # seconds; with less left nothing is begun


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    command: list[str]
    limit: float  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it")
    parser.add_argument("--steps", type=int, default=10, help="timed ones of each case")
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--case", help="in place of the cases for a GPU")
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        wanted = [task for task in tasks(arguments, data) if arguments.only in task.name]
        if arguments.dry_run:
            for task in wanted:
                print(f"{task.name} (at most {task.limit:.0f} s): {' '.join(task.command)}")
            return
        run_all(wanted, time.monotonic() + 60 * arguments.minutes)


def tasks(arguments: argparse.Namespace, data: str) -> list[Task]:
    """In order of what they are worth."""

    def step(case: str, limit: float, *options: str) -> Task:
        command = [sys.executable, str(HERE / "train_step.py")]
        command += [str(folder.resolve()) for folder in (arguments.chat, arguments.tokenizer)]
        command += ["--case", case, "--steps", str(arguments.steps), "--data", data, *options]
        return Task(" ".join(["train_step", case, *options]), command, limit)

    def longest(case: str, limit: float) -> Task:
        command = [sys.executable, str(HERE / "longest_row.py"), "--case", case, "--recompute", "full"]
        return Task(f"longest_row {case}", command, limit)

    if arguments.case:
        return [step(arguments.case, 300, "--alone"), step(arguments.case, 300), longest(arguments.case, 300)]
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "--durations=5",
        "--continue-on-collection-errors",
        "tests",
    ]
    return [
        step("qwen3_0_6b_full", 120, "--alone"),
        Task("tests", tests, 150),
        step("nano3_cut", 120),
        step("qwen3_8b_lora", 120, "--alone"),
        step("qwen3_0_6b_full", 120, "--alone", "--compile"),
        step("nano3_cut", 120, "--compile"),
        step("qwen3_8b_lora", 120, "--alone", "--compile"),
        longest("qwen3_0_6b_full", 150),
        longest("qwen3_8b_lora", 150),
        step("qwen3_0_6b_full", 180),
        step("qwen3_8b_lora", 240),
    ]


def run_all(wanted: list[Task], deadline: float) -> None:
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / "on_gpu.log"
    log.unlink(missing_ok=True)
    done: list[dict[str, Any]] = []
    for task in wanted:
        limit = min(task.limit, deadline - time.monotonic())
        done.append(run(task, limit, log) if limit > SHORTEST else {"task": task.name, "ended": "left out: no time"})
        print(f"{task.name}: {done[-1]['ended']}", file=sys.stderr, flush=True)
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        (RESULTS / "on_gpu.json").write_text(json.dumps({"date": date, "tasks": done}, indent=1) + "\n")


def run(task: Task, limit: float, log: Path) -> dict[str, Any]:
    """Within `limit` seconds, with all processes that it starts."""
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("a") as said:
        said.write(f"\n=== {task.name}\n")
        said.flush()
        process = subprocess.Popen(
            task.command, cwd=REPO, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            ended = f"exit code {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"stopped after {limit:.0f} s"
    seconds = round(time.monotonic() - started, 1)
    return {"task": task.name, "seconds": seconds, "ended": ended}


if __name__ == "__main__":
    main()
