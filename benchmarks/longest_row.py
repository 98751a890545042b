"""The longest row that one GPU trains: peak memory of steps on rows of one conversation, and the length that follows from it.

    python benchmarks/longest_row.py --case qwen3_0_6b_full [--recompute full] [--lengths 16384 32768 65536]

Beyond the shortest of these rows memory grows in proportion to the length: the longest row is where the line through the last
two reaches what the device has, less a tenth for what is between allocations. Writes longest_row_<case>_<recompute>.json
after each length.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_step import RESULTS, forget_peak, machine, peak_gib, versions
from train_step_cases import Case, cases
from train_step_peers import Ours

from sft_hydra.kernels.fused_choice import try_fused
from sft_hydra.kernels.library_choice import try_kernels
from sft_hydra.process.allocator import use_expandable_segments
from sft_hydra.records import PackedRow
from sft_hydra.schema.train import Recompute

USED = 0.9  # of the device's memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(cases()), required=True)
    parser.add_argument("--recompute", choices=[kind.value for kind in Recompute], default="full")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16384, 32768, 65536])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    use_expandable_segments()
    case = cases()[arguments.case]
    case.architecture.setdefault("vocab_size", 4096)
    if case.device == "cuda":
        try_kernels(torch.device("cuda"))
        try_fused(torch.device("cuda"))
    case = replace(case, rows=1, micro=1, options={"recompute": Recompute(arguments.recompute)})
    party = Ours(case, [])
    total = torch.cuda.get_device_properties(0).total_memory / 2**30 if case.device == "cuda" else None
    peaks: dict[int, float] = {}
    for length in arguments.lengths:
        try:
            peaks[length] = peak_of(party, case, length)
        except torch.OutOfMemoryError:
            print(f"{length} tokens: no memory", file=sys.stderr)
            break
        finally:
            write(arguments, case, peaks, total)
    print(json.dumps(write(arguments, case, peaks, total), indent=1))


def peak_of(party: Ours, case: Case, length: int) -> float:
    """GiB, of the second of two steps on a row of one conversation, half of it trained."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, case.architecture["vocab_size"], length).astype(np.int32)
    mask = (np.arange(length) >= length // 2).astype(np.uint8)
    mask[-1] = 0
    start = np.zeros(1, np.int32)
    party.state.rows_consumed = 0
    party.rows = [PackedRow(ids, mask, start, start.astype(np.int16))] * 2
    party.step()
    forget_peak(case.device)
    started = time.perf_counter()
    party.step()
    peak = peak_gib(case.device)
    print(f"{length} tokens: {peak} GiB, {time.perf_counter() - started:.2f} s", file=sys.stderr, flush=True)
    return peak


def write(arguments: argparse.Namespace, case: Case, peaks: dict[int, float], total: float | None) -> dict[str, Any]:
    result = {
        "case": arguments.case,
        "recompute": arguments.recompute,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(case.device, 1),
        "versions": versions(),
        "peak_gib": peaks,
        "device_gib": None if total is None else round(total, 1),
        "longest_row_estimated": None if total is None else longest(peaks, USED * total),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"longest_row_{arguments.case}_{arguments.recompute}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def longest(peaks: dict[int, float], memory: float) -> int | None:
    """Tokens whose peak is `memory` GiB, on the line through the last two of {tokens: GiB}; None with fewer than two."""
    if len(peaks) < 2:
        return None
    (short, low), (long, high) = list(peaks.items())[-2:]
    if high <= low:
        return None
    return int(long + (memory - high) * (long - short) / (high - low))


if __name__ == "__main__":
    main()
