"""What training waits for beside computing: reading rows and saving checkpoints.

    python benchmarks/overlap.py CHAT_FOLDER TOKENIZER_FOLDER [--rows 8] [--seq-length 4096] [--steps 20]

Rows: how long a step's rows take to read and lay out, and how long a step waits for them when the next step's are read
ahead while this one is computed (`--step-seconds`, spent asleep: any device that does not need this processor).
Checkpoints: a state of 300 MB, written at once, and how long training stands still when it is written in the background.
Writes benchmarks/results/overlap.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from train_step_cases import TINY

from sft_hydra.checkpoint.state import Saver
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.blend import train_rows
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.loop import TrainState
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.engine.prefetch import Prefetcher
from sft_hydra.models.build import build_model
from sft_hydra.models.init_weights import init_weights
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import SourceConfig
from sft_hydra.schema.model import ModelConfig

RESULTS = Path(__file__).parent / "results" / "overlap.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seq-length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--step-seconds", type=float, default=0.4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rows": rows_ahead(arguments),
        "checkpoint": saving(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def rows_ahead(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cfg = SftConfig(model=ModelConfig(name="none"), seq_length=arguments.seq_length, output_dir=folder)
        cfg.tokenizer.path = str(arguments.tokenizer)
        cfg.data.num_workers = 1
        cfg.data.sources = {"chat": SourceConfig(path=str(arguments.chat / "*.jsonl"))}
        packed = prepare(cfg)
        size, waited = arguments.rows, []
        rows = train_rows(packed, cfg)
        steps = [range(first, first + size) for first in range(0, arguments.steps * size, size)]
        plain = [seconds(lay_out, rows, numbers) for numbers in steps]
        with Prefetcher(train_rows(PackedSet.open(packed.folder), cfg)) as ahead:
            ahead.expect(steps[0])
            for numbers, following in pairwise(steps):
                ahead.expect(following)
                waited.append(seconds(lay_out, ahead, numbers))
                time.sleep(arguments.step_seconds)
    share = 100 * statistics.mean(waited[1:]) / (arguments.step_seconds + statistics.mean(waited[1:]))
    return {
        "rows_per_step": size,
        "seq_length": arguments.seq_length,
        "milliseconds_without_reading_ahead": round(1000 * statistics.mean(plain[1:]), 2),
        "milliseconds_waited": round(1000 * statistics.mean(waited[1:]), 2),
        "step_seconds": arguments.step_seconds,
        "share_of_step_percent": round(share, 2),
    }


def saving() -> dict[str, Any]:
    """A model of about 25 million parameters with its moments, in fp32."""
    model = build_model(TINY | {"vocab_size": 85_000}, "cpu", torch.float32)
    init_weights(model, 0, 0.02)
    cfg = SftConfig(model=ModelConfig(name="none"))
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    size = sum(3 * parameter.numel() * parameter.element_size() for parameter in model.parameters())
    whole, blocked = [], []
    with tempfile.TemporaryDirectory() as folder:
        now = Saver(Path(folder) / "now", recipe_of(cfg), cfg.checkpoint)
        later = Saver(Path(folder) / "later", replace(cfg, checkpoint=replace(cfg.checkpoint, async_save=True)))
        for step in range(1, 5):
            state = TrainState(step=step)
            whole.append(seconds(now.save, model, optimizer, state))
            blocked.append(seconds(later.save, model, optimizer, state))
            later.wait()
    return {
        "megabytes": round(size / 1e6),
        "seconds_of_a_save": round(statistics.median(whole), 3),
        "seconds_blocked_first": round(blocked[0], 3),
        "seconds_blocked_later": round(statistics.median(blocked[1:]), 3),
        "blocked_share_percent": round(100 * statistics.median(blocked[1:]) / statistics.median(whole), 1),
    }


def lay_out(rows: Any, numbers: range) -> None:
    make_batch([rows[n] for n in numbers], "cpu")


def seconds(work: Callable[..., object], *arguments: Any) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
