"""Trainings in processes of their own that may be killed at any moment; what they wrote down tells what they did."""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from support.configs import make_cfg
from support.packed import ARCHITECTURES, RowList, make_model, make_row

from sft_hydra.checkpoint.state import Saver, latest, load
from sft_hydra.engine.loop import StepResult, TrainState, train_loop
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.planning.recipe import recipe_of

SMALLEST = ARCHITECTURES["qwen3"] | {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}


def run_on(folder: Path, steps: int, interval: int) -> None:
    """Train to `steps` from the latest checkpoint, saving in the background every `interval` steps. Each step is a line of
    `losses.jsonl`: where this attempt began, the step, its loss."""
    torch.set_num_threads(1)
    cfg = make_cfg()
    cfg.train.train_iters = steps
    model = make_model(SMALLEST)
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    found = latest(folder)
    state = load(found, model, optimizer) if found else TrainState()
    began, saver = state.step, Saver(folder, recipe_of(cfg), cfg.checkpoint)
    with open(folder / "losses.jsonl", "ab", buffering=0) as log:

        def after_step(result: StepResult) -> None:
            log.write(json.dumps([began, result.step, result.loss]).encode() + b"\n")
            if result.step % interval == 0 or result.step == steps:
                saver.save(model, optimizer, state)

        rows = RowList(make_row([5 + i % 7, 20, 3], seed=i) for i in range(60))
        train_loop(
            model, optimizer, rows, state, recipe_of(cfg), steps, after_step=after_step, should_stop=lambda: False
        )
        saver.wait()


def losses(folder: Path) -> list[tuple[int, int, float]]:
    """(where the attempt began, step, loss) of all steps that any attempt finished; a torn last line does not count."""
    file = folder / "losses.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [(began, step, loss) for began, step, loss in map(json.loads, lines)]


def started(function: Callable[..., Any], *args: Any) -> ForkServerProcess:
    """A process that has torch already, so that it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preload"])
    # the server that forks looks for what it preloads on this path alone
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process = context.Process(target=function, args=args, daemon=True)
        process.start()
    return process
