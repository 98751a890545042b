"""QLoRA against LoRA on one model: losses, seconds of a step and the largest resident memory of the process.

    python benchmarks/qlora.py MODEL_FOLDER CHATS.jsonl [--steps 6] [--batch 4] [--seq-length 512] [--precision bf16]

Each method trains the same rows from the same seed in a process of its own. `resident_mb` counts the Python and torch libraries too,
so only the difference of two methods says something. Results go to
benchmarks/results/qlora.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "qlora.json"
METHODS = {
    "lora": ["peft=lora"],
    "qlora nf4": ["peft=qlora"],
    "qlora int8": ["peft=qlora", "peft.quantize_base=int8"],
}


def main() -> None:
    arguments = _arguments()
    results: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "bitsandbytes": version("bitsandbytes"),
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("model", "chats")},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, method in METHODS.items():
            results[name] = measured(arguments, method, Path(folder) / name.replace(" ", "_"))
            print(name, json.dumps(results[name]), flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def measured(arguments: argparse.Namespace, method: list[str], run: Path) -> dict[str, Any]:
    """Train with one method; its losses, median seconds of a step, and memory in MB."""
    command = [sys.executable, "-m", "sft_hydra", "model=hf", f"model.path={arguments.model}", *method]
    command += [
        "data=jsonl",
        f"data.path={arguments.chats}",
        f"seq_length={arguments.seq_length}",
        f"output_dir={run}",
        "name=run",
    ]
    command += [f"train.train_iters={arguments.steps}", f"train.global_batch_size={arguments.batch}"]
    command += [
        f"train.precision={arguments.precision}",
        "train.micro_batch_size=1",
        "eval.every=0",
        "export.auto=false",
    ]
    process = subprocess.Popen([*command, *arguments.more], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    steps = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": [round(step["loss"], 4) for step in steps if "loss" in step],
        "seconds_per_step": round(median(step["seconds"] for step in steps if "loss" in step), 2),
        "resident_mb": usage.ru_maxrss >> 10,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("chats")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--more", nargs="*", default=[], help="more overrides, such as train.recompute=full")
    return parser.parse_args()


if __name__ == "__main__":
    main()
