"""Hostile lines in bulk through the whole preparation; prints what became of them.

PYTHONPATH=tests python tests/reliability/fuzz_rows.py --lines 500000
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from support.chats import data_cfg
from support.hostile import write_hostile

from sft_hydra.data_prep.prepare import prepare

FILE_LINES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer")
    options = parser.parse_args()
    totals: Counter[str] = Counter()
    began = time.monotonic()
    for seed in range(options.seed, options.seed + options.lines // FILE_LINES):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "hostile.jsonl"
            rows = write_hostile(path, seed, FILE_LINES)
            cfg = data_cfg(Path(folder) / "out", hostile=path)
            cfg.tokenizer.path = options.tokenizer
            cfg.data.filters.tool_schema = cfg.data.filters.repetition = cfg.data.filters.dedup = True
            source = prepare(cfg).metadata["sources"][0]
            if source["rows"] != rows or rows != source["kept"] + source["rejected"]:
                sys.exit(f"seed {seed}: {rows} rows written, {source['kept']} kept, {source['rejected']} rejected")
            totals.update({"rows": rows, "kept": source["kept"], "blank": FILE_LINES - rows}, **source["rejects"])
    print(f"{options.lines:,} lines in {time.monotonic() - began:.0f} s")
    for name, count in totals.most_common():
        print(f"{count:>10,}  {name}")


if __name__ == "__main__":
    main()
