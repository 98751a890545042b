"""The longest row that one GPU trains: a step on a row of one conversation, longer and longer until memory does not suffice.

    python benchmarks/longest_row.py --case qwen3_0_6b_full [--recompute full]

Each length is tried in a process of its own; lengths double until one fails, then the gap is halved down to 2 %. Writes
benchmarks/results/longest_row_<case>_<recompute>.json after each of them, so that a search that is stopped leaves what it knows.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_step import machine, versions
from train_step_cases import Case, cases
from train_step_peers import Ours

from sft_hydra.records import PackedRow
from sft_hydra.schema.config import Recompute

RESULTS = Path(__file__).parent / "results"
NO_MEMORY = 3  # exit code of a process that tried a length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(cases()), required=True)
    parser.add_argument("--recompute", choices=[kind.value for kind in Recompute], default="full")
    parser.add_argument("--start", type=int, default=8192)
    parser.add_argument("--limit", type=int, default=2**21)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    case = cases()[arguments.case]
    case.architecture.setdefault("vocab_size", 4096)
    if arguments.length:
        sys.exit(attempt(case, Recompute(arguments.recompute), arguments.length))
    print(json.dumps(search(arguments, case), indent=1))


def write(arguments: argparse.Namespace, case: Case, longest: int, failed: int | None) -> dict[str, Any]:
    """What is known: the longest row that was trained, and the shortest for which memory did not suffice."""
    result = {
        "case": arguments.case,
        "recompute": arguments.recompute,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(case.device, 1),
        "versions": versions(),
        "longest_row": longest,
        "too_long": failed,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"longest_row_{arguments.case}_{arguments.recompute}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def search(arguments: argparse.Namespace, case: Case) -> dict[str, Any]:
    """The last that was written: 0 tokens if not even the first row was trained, none too long if all up to the limit were."""
    done, length, failed = 0, arguments.start, None
    while length <= arguments.limit and (failed is None or failed - done > max(256, done // 50)):
        if fits(arguments, length):
            done = length
        else:
            failed = length
        result = write(arguments, case, done, failed)
        length = 2 * done if failed is None else (done + failed) // 2
    return result


def fits(arguments: argparse.Namespace, length: int) -> bool:
    command = [sys.executable, __file__, "--case", arguments.case, "--recompute", arguments.recompute]
    code = subprocess.run([*command, "--length", str(length)], check=False).returncode
    if code not in (0, NO_MEMORY):
        raise SystemExit(f"a row of {length} tokens ended with exit code {code}")
    print(f"{length} tokens: {'no memory' if code else 'trained'}", file=sys.stderr)
    return code == 0


def attempt(case: Case, recompute: Recompute, length: int) -> int:
    """Two steps on a row of one conversation, half of it trained."""
    case = replace(case, seq_length=length, rows=1, micro=1, options={"recompute": recompute})
    rng = np.random.default_rng(0)
    ids = rng.integers(0, case.architecture["vocab_size"], length).astype(np.int32)
    mask = (np.arange(length) >= length // 2).astype(np.uint8)
    mask[-1] = 0
    start = np.zeros(1, np.int32)
    try:
        party = Ours(case, [PackedRow(ids, mask, start, start.astype(np.int16))] * 2)
        for _ in range(2):
            party.step()
    except torch.OutOfMemoryError:
        return NO_MEMORY
    return 0


if __name__ == "__main__":
    main()
