"""How long it takes from starting the command to the end of the first training step, on a CPU, and what the time goes to.

    python benchmarks/first_step.py [--repeat 3] [--threads 1] [overrides ...]

Runs the default command (the demo) twice from nothing: once with data to prepare, once with data that is there. Without
overrides the evaluation before training is part of it, as users meet it; `eval.exact_match.path=null eval.samples=[]` leave
it out. Writes benchmarks/results/first_step.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sft_hydra.paths import RunPaths

RESULTS = Path(__file__).parent / "results" / "first_step.json"
POLL_SECONDS = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"data to prepare": [], "data prepared": []}
    for _ in range(arguments.repeat):
        with tempfile.TemporaryDirectory() as folder:
            for kind, found in runs.items():
                found.append(first_step(Path(folder), kind.replace(" ", "_"), arguments))
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "threads": arguments.threads,
        "overrides": arguments.overrides,
        "fastest of": arguments.repeat,
        "seconds": {kind: min(found, key=lambda run: run["first step done"]) for kind, found in runs.items()},
        "median": {kind: statistics.median(run["first step done"] for run in found) for kind, found in runs.items()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def first_step(folder: Path, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds until step 1 is written to metrics.jsonl, and the parts of them."""
    run = RunPaths(folder / name)
    command = [sys.executable, "-m", "sft_hydra", f"name={name}", f"output_dir={folder}", "train.train_iters=1"]
    command += ["export.auto=false", *arguments.overrides]
    threads = {"OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | threads, stdout=subprocess.DEVNULL)
    while (step := step_line(run.metrics)) is None:
        if process.poll() not in (None, 0):
            raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
        time.sleep(POLL_SECONDS)
    done, processor = time.perf_counter() - started, cpu_seconds(process.pid)
    process.wait()
    seconds = json.loads(run.summary.read_text())["seconds"]
    parts = {part: seconds[part] for part in ("prepare data", "build model", "evaluate before") if part in seconds}
    parts["step 1"] = step["seconds"]
    parts["interpreter, config, imports"] = round(done - sum(parts.values()), 2)
    return {**parts, "first step done": round(done, 2), "of them on the processor": processor}


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, which is more reliable on a shared machine. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return round(sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"), 2)


def step_line(metrics: Path) -> dict[str, Any] | None:
    """The line of the first step, once it is there."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return next((step for line in lines if line.endswith("\n") and "loss" in (step := json.loads(line))), None)


if __name__ == "__main__":
    main()
