"""What `train.recompute` and `train.compile` cost and save, of a forward and backward pass of a small model on a CPU.

    python benchmarks/blocks.py [--repeat 5]

Ways alternate; of each the processor time of the middle one, and the most memory that torch held at one time. Writes
benchmarks/results/blocks.json.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_step_cases import Case
from train_step_peers import our_model

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.records import PackedRow
from sft_hydra.schema.train import Recompute

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.memory import peak_bytes

RESULTS = Path(__file__).parent / "results" / "blocks.json"
ARCHITECTURE = {
    "model_type": "qwen3",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
}
LENGTHS = [300, 200, 24, 500]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recompute=selective": {"recompute": Recompute.selective},
    "recompute=full": {"recompute": Recompute.full},
    "compile": {"compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = Case(ARCHITECTURE, sum(LENGTHS), 1, 1, "cpu")
    batch = make_batch([row()], "cpu")
    models = {way: our_model(replace(case, options=options)) for way, options in WAYS.items()}

    def step(way: str) -> None:
        models[way].zero_grad()
        forward_loss(models[way], batch)[0].backward()

    first = {way: seconds(step, way) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeat):
        for way in WAYS:
            times[way].append(seconds(step, way))
    result: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "torch": torch.__version__}
    for way in WAYS:
        result[way] = {
            "cpu_seconds": round(statistics.median(times[way]), 3),
            "first_cpu_seconds": round(first[way], 1),
            "peak_megabytes": round(peak_bytes(lambda way=way: step(way)) / 1e6, 1),
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def row() -> PackedRow:
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    mask = (rng.random(sum(LENGTHS)) < 0.5).astype(np.uint8)
    mask[starts + np.array(LENGTHS) - 1] = 0
    ids = rng.integers(0, ARCHITECTURE["vocab_size"], sum(LENGTHS)).astype(np.int32)
    return PackedRow(ids, mask, starts.astype(np.int32), np.zeros(len(LENGTHS), np.int16))


def seconds(step: Any, way: str) -> float:
    started = time.process_time()
    step(way)
    return time.process_time() - started


if __name__ == "__main__":
    main()
