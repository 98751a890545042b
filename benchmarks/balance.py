"""How evenly attention's work is spread over data-parallel ranks, with rows in their order and balanced, on packed real rows.

    python benchmarks/balance.py CHAT_FOLDER TOKENIZER_FOLDER [--ranks 8] [--rows 64] [--micro 1] [--seq-length 4096]

Costs are sums of squared lengths of conversations; nothing is trained. `rank`: what the rank with most has over the mean of
all, of a whole step. `waiting`: the same where ranks wait for each other in every micro-batch, as sharded weights make them.
Writes benchmarks/results/balance.json.
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sft_hydra.data_prep.blend import train_rows
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.engine.load_balancing import balanced_shares
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import SourceConfig
from sft_hydra.schema.model import ModelConfig

RESULTS = Path(__file__).parent / "results" / "balance.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat", type=Path)
    parser.add_argument("tokenizer", type=Path)
    for name, default in (("ranks", 8), ("rows", 64), ("micro", 1), ("seq-length", 4096)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    result = measure(arguments)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    ranks, rows, micro = arguments.ranks, arguments.rows, arguments.micro
    costs = row_costs(arguments)
    steps = [costs[first : first + rows] for first in range(0, len(costs) - rows + 1, rows)]
    share = rows // ranks
    in_order = [[list(range(i, i + micro)) for i in range(r * share, (r + 1) * share, micro)] for r in range(ranks)]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **{name: getattr(arguments, name) for name in ("ranks", "rows", "micro", "seq_length")},
        "steps": len(steps),
        "rows in their order": spreads(steps, [in_order] * len(steps)),
        "balanced": spreads(steps, [balanced_shares(step, ranks, micro) for step in steps]),
    }


def row_costs(arguments: argparse.Namespace) -> list[float]:
    """Of all rows of one epoch, in the order of training."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = SftConfig(model=ModelConfig(name="none"), seq_length=arguments.seq_length, output_dir=folder)
        cfg.tokenizer.path = str(arguments.tokenizer)
        cfg.data.num_workers = 1
        cfg.data.sources = {"chat": SourceConfig(path=str(arguments.chat / "*.jsonl"))}
        rows = train_rows(prepare(cfg), cfg)
        return rows.costs(range(rows.rows_per_epoch))


def spreads(steps: list[list[float]], shares: list[list[list[list[int]]]]) -> dict[str, float]:
    """Means over steps of (largest / mean), of ranks' totals and summed over micro-batches."""
    of_rank, waiting = [], []
    for costs, share in zip(steps, shares, strict=True):
        weights = np.array([[sum(costs[row] for row in rows) for rows in rank] for rank in share])  # (ranks, micro)
        mean = weights.sum() / len(weights)
        of_rank.append(weights.sum(1).max() / mean)
        waiting.append(weights.max(0).sum() / mean)
    return {"rank": round(float(np.mean(of_rank)), 3), "waiting": round(float(np.mean(waiting)), 3)}


if __name__ == "__main__":
    main()
