"""The longest row that one GPU trains: a step on a row of one conversation, longer and longer until memory does not suffice.

    python benchmarks/longest_row.py --case qwen3_0_6b_full [--recompute full]

Each length is tried in a process of its own; lengths double until one fails, then the gap is halved down to 2 %. Writes
benchmarks/results/longest_row_<case>_<recompute>.json.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from train_step import machine, versions
from train_step_cases import Case, cases
from train_step_peers import Ours

from sft_hydra.config.schema import Recompute
from sft_hydra.records import PackedRow

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
    longest = search(arguments)
    result = {
        "case": arguments.case,
        "recompute": arguments.recompute,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(case.device, 1),
        "versions": versions(),
        "longest_row": longest,
        "limit_reached": longest >= arguments.limit,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"longest_row_{arguments.case}_{arguments.recompute}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def search(arguments: argparse.Namespace) -> int:
    """Tokens of the longest row that was trained; 0 if not even the first was."""
    done, failed = 0, arguments.start
    while failed <= arguments.limit and fits(arguments, failed):
        done, failed = failed, 2 * failed
    if failed > arguments.limit:
        return done
    while failed - done > max(256, done // 50):
        middle = (done + failed) // 2
        if fits(arguments, middle):
            done = middle
        else:
            failed = middle
    return done


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
