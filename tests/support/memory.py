"""Peak memory of work on the CPU, as torch's allocator reports it: every tensor, those inside of kernels too."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from support.packed import RowList, make_row
from torch.profiler import ProfilerActivity, profile

from sft_hydra.engine.loop import TrainState, optimizer_step
from sft_hydra.engine.materialize import materialize_on_mesh
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.models.build import build_model
from sft_hydra.models.freeze import freeze_parameters
from sft_hydra.models.init_weights import init_weights
from sft_hydra.models.lora import add_adapters, init_adapters
from sft_hydra.models.quantized_linear import quantize_linears
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.planning.topology import run_layout
from sft_hydra.schema.config import SftConfig


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that were allocated at one time while `work` ran, of what was allocated since it began."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    # Not the running total that each event has: it misses what threads of collectives give up, until its place is taken.
    live: dict[int, int] = {}
    total = peak = 0
    for change in sorted(changes, key=lambda event: event["ts"]):
        place, size = change["args"]["Addr"], change["args"]["Bytes"]
        total += max(size, 0) - live.pop(place, 0)
        if size > 0:
            live[place] = size
        peak = max(peak, total)
    return peak


def training_peak(cfg: SftConfig) -> int:
    """Of this rank: `peak_bytes` of making the model of `cfg.model.architecture` and two optimizer steps of full rows."""
    architecture, device = cfg.model.architecture, torch.device("cpu")
    rows = RowList(make_row([cfg.seq_length], seed=seed, vocab=architecture["vocab_size"]) for seed in range(8))
    for row in rows:
        row.loss_mask[:-1] = 1

    def work() -> None:
        model = build_model(
            architecture, "meta", torch.float32 if cfg.peft is None else compute_dtype(cfg.train.precision, device)
        )
        if cfg.peft is not None and cfg.peft.quantize_base is not None:
            quantize_linears(model, cfg.peft.quantize_base)
        if cfg.peft is not None:
            add_adapters(model, cfg.peft)
        if cfg.train.freeze or cfg.train.trainable:
            freeze_parameters(model, cfg.train.freeze, cfg.train.trainable)
        materialize_on_mesh(model, cfg.train, run_layout(cfg, architecture), device)
        init_weights(model, 0, 0.02)
        if cfg.peft is not None:
            init_adapters(model, 0)
        optimizer, state = build_optimizer(model, cfg.optimizer, cfg.train.precision), TrainState()
        for _ in range(2):  # moments are there from the second on
            optimizer_step(model, optimizer, rows, state, recipe_of(cfg), 2)

    return peak_bytes(work)
