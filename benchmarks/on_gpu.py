"""All that is to be measured on one GPU, in one command and a bounded time.

    python benchmarks/on_gpu.py --rows rows.npz --out OUT [--minutes 8.5] [--only train_step] [--dry-run]
    python benchmarks/on_gpu.py CHAT_FOLDER TOKENIZER_FOLDER --out OUT
    python benchmarks/on_gpu.py --rehearse --out OUT

Checks first that training works at all, then measures the most important things first; compiled blocks come last. Each task is a
process of its own with a time limit; tasks that do not fit the remaining time are skipped. After each task its figures are printed
and on_gpu.json is rewritten with the results of all tasks so far; their output is in on_gpu.log. Both are in OUT, with the files of
the tasks themselves. Peers (TRL, transformers) take part where they are installed. Nothing is fetched from a network.
`--rehearse` runs the same on a CPU with tiny models. benchmarks/carry.sh packs what a bare machine needs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPO = HERE.parent
SHORTEST = 15.0  # seconds; with less left nothing is begun


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    command: list[str]
    limit: float  # seconds
    result: str | None = None  # name of the file that it writes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat", type=Path, nargs="?")
    parser.add_argument("tokenizer", type=Path, nargs="?")
    parser.add_argument("--rows", type=Path, help="rows from benchmarks/rows_file.py, in place of the two folders")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of all results")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it")
    parser.add_argument("--steps", type=int, default=10, help="timed ones of each case")
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny models")
    parser.add_argument("--dry-run", action="store_true", help="print what would run")
    arguments = parser.parse_args()
    if not (arguments.rows or arguments.tokenizer or arguments.rehearse):
        parser.error("give --rows, or CHAT_FOLDER and TOKENIZER_FOLDER, or --rehearse")
    deadline = time.monotonic() + 60 * arguments.minutes
    arguments.out = arguments.out.resolve()
    wanted = [task for task in (rehearsal if arguments.rehearse else tasks)(arguments) if arguments.only in task.name]
    if arguments.dry_run:
        for task in wanted:
            print(f"{task.name} (at most {task.limit:.0f} s): {' '.join(task.command)}")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    run_all(wanted, deadline, arguments.out)


def tasks(arguments: argparse.Namespace) -> list[Task]:
    """In order of what they are worth. Limits are what a task needs at most if it works; all but the peers' and the last three
    fit 8.5 minutes together."""

    def step(case: str, limit: float, *options: str) -> Task:
        return train_step(arguments, case, limit, *options)

    return [
        script(arguments, "smoke", 60, "smoke.py"),
        step("qwen3_0_6b_full", 75, "--alone", "--profile"),
        step("qwen3_8b_lora", 90, "--alone", "--profile"),
        step("nano3_cut", 75, "--profile"),
        Task("tests", tests("-v", "--tb=short"), 100),
        longest(arguments, "qwen3_0_6b_full", 60),
        step("qwen3_0_6b_full", 90),
        step("qwen3_8b_lora", 100),
        longest(arguments, "qwen3_8b_lora", 60),
        script(arguments, "smoke --compile", 90, "smoke.py", "--compile"),
        step("qwen3_0_6b_full", 100, "--alone", "--compile"),
        step("qwen3_8b_lora", 100, "--alone", "--compile"),
        step("nano3_cut", 100, "--compile"),
    ]


def rehearsal(arguments: argparse.Namespace) -> list[Task]:
    """Every script once, and nothing that needs a GPU, a network or a compiler."""
    arguments.steps = 2
    arguments.rows = arguments.out / "rehearsal_rows.npz"
    rows = [sys.executable, "-c", REHEARSAL_ROWS, str(arguments.rows)]
    return [
        Task("rows", rows, 60),
        script(arguments, "smoke", 120, "smoke.py", "--device", "cpu"),
        train_step(arguments, "rehearsal", 120, "--alone", "--profile"),
        Task("tests", tests("-q", "--collect-only"), 120),
        longest(arguments, "rehearsal", 120, "--lengths", "256", "512"),
    ]


REHEARSAL_ROWS = """
import sys
from pathlib import Path
import numpy as np
from rows_file import save_rows
from sft_hydra.records import PackedRow
start = np.array([0, 50], np.int32)
mask = np.ones(128, np.uint8)
mask[[49, 127]] = 0
rows = [PackedRow(np.random.default_rng(i).integers(0, 600, 128).astype(np.int32), mask, start, start.astype(np.int16) * 0) for i in range(12)]
save_rows(Path(sys.argv[1]), rows, 600)
"""


def script(arguments: argparse.Namespace, name: str, limit: float, file: str, *options: str) -> Task:
    return Task(name, [sys.executable, str(HERE / file), *options], limit)


def train_step(arguments: argparse.Namespace, case: str, limit: float, *options: str) -> Task:
    command = [sys.executable, str(HERE / "train_step.py"), "--case", case, "--steps", str(arguments.steps), *options]
    if arguments.rows:
        command += ["--rows", str(arguments.rows.resolve())]
    else:
        command += [str(folder.resolve()) for folder in (arguments.chat, arguments.tokenizer)]
        command += ["--data", str(arguments.out / "prepared")]
    folder = arguments.out / ("with_peers" if "--alone" not in options else "alone")
    result = f"{folder.name}/train_step_{case}{'_compile' * ('--compile' in options)}.json"
    return Task(" ".join(["train_step", case, *options]), [*command, "--out", str(folder)], limit, result)


def longest(arguments: argparse.Namespace, case: str, limit: float, *options: str) -> Task:
    command = [sys.executable, str(HERE / "longest_row.py"), "--case", case, "--out", str(arguments.out), *options]
    return Task(f"longest_row {case}", command, limit, f"longest_row_{case}_full.json")


def tests(*options: str) -> list[str]:
    """pytest on the files that have tests for a GPU; compiled cases, which take minutes, are left out. Warnings, which fail other
    runs of the tests, are printed: some occur on CUDA only."""
    files = [file for file in sorted((REPO / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in file.read_text()]
    return [
        sys.executable,
        "-m",
        "pytest",
        "-n0",
        "-m",
        "gpu",
        "-W",
        "default",
        "-k",
        "not compile",
        "--durations=5",
        *options,
        *map(str, files),
    ]


def run_all(wanted: list[Task], deadline: float, out: Path) -> None:
    log = out / "on_gpu.log"
    log.unlink(missing_ok=True)
    done: list[dict[str, Any]] = []
    for task in wanted:
        limit = min(task.limit, deadline - time.monotonic())
        done.append(
            run(task, limit, log, out) if limit > SHORTEST else {"task": task.name, "ended": "left out: no time"}
        )
        print(f"{task.name}: {done[-1]['ended']}, {done[-1].get('seconds', 0)} s", flush=True)
        for line in table(done[-1]):
            print(f"    {line}", flush=True)
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        (out / "on_gpu.json").write_text(json.dumps({"date": date, "tasks": done}, indent=1) + "\n")


def run(task: Task, limit: float, log: Path, out: Path) -> dict[str, Any]:
    """Within `limit` seconds, with all processes that it starts. Results of a task that was stopped are those until then."""
    started = time.monotonic()
    path = os.pathsep.join([str(REPO), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    file = None if task.result is None else out / task.result
    if file is not None:
        file.unlink(missing_ok=True)
    with log.open("a") as printed:
        printed.write(f"\n=== {task.name}\n")
        printed.flush()
        begins = log.stat().st_size
        process = subprocess.Popen(
            task.command, cwd=REPO, env=environment, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            ended = f"exit code {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"stopped after {limit:.0f} s"
    found: dict[str, Any] = {"task": task.name, "seconds": round(time.monotonic() - started, 1), "ended": ended}
    if file is not None and file.is_file():
        found["result"] = json.loads(file.read_text())
    elif file is None or ended != "exit code 0":
        with log.open("rb") as printed:
            printed.seek(begins)
            found["last_lines"] = printed.read().decode(errors="replace").splitlines()[-12:]
    return found


def table(done: dict[str, Any]) -> list[str]:
    """What a task has found, in a few lines."""
    result = done.get("result", {})
    lines = [
        f"{name}: {each['median_seconds']} s a step ({each['spread_percent']} % spread), "
        f"{each['tokens_per_second']['real']:,} tokens/s, MFU {each['mfu_percent']['published']} % published "
        f"{each['mfu_percent']['needed']} % needed, {each.get('peak_memory_gib')} GiB, {each['times_ours_seconds']} x ours"
        for name, each in result.get("parties", {}).items()
    ]
    lines += [f"{operation}: {kernel}" for operation, kernel in result.get("kernels", {}).items()]
    lines += [f"{name} did not take part: {why}" for name, why in result.get("not_compared", {}).items()]
    if "peak_gib" in result:
        lines += [f"GiB by length: {result['peak_gib']}; longest row about {result['longest_row_estimated']} tokens"]
    return lines + done.get("last_lines", [])


if __name__ == "__main__":
    main()
