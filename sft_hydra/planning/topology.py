"""The world of a run: how many ranks there are and how they can be laid out. Set by the user; GPUs of this
machine that count where nothing is set are in the config by then (gpus.py)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from sft_hydra.planning.architecture import is_generic
from sft_hydra.planning.layout import Layout, layout_problems, num_experts, plan_layout
from sft_hydra.schema.cluster import ClusterKind
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.runners import Runner
from sft_hydra.schema.train import Recompute, TrainConfig

SLURM_GPUS_PER_NODE = 8  # default of cluster.gpus_per_node on Slurm
MODEL_RUNNERS = (Runner.train, Runner.evaluate, Runner.generate, Runner.export)
DEFAULT_ROWS = 8  # default of train.global_batch_size


def ranks_per_node(cfg: SftConfig) -> int:
    """`cluster.gpus_per_node`, with its default for the kind of cluster."""
    if cfg.cluster.gpus_per_node is not None:
        return cfg.cluster.gpus_per_node
    return SLURM_GPUS_PER_NODE if cfg.cluster.kind is ClusterKind.slurm else 1


def ranks_of_runner(cfg: SftConfig) -> tuple[int, int]:
    """(nodes, ranks per node) of the runner: all of the cluster for runners that use a model, else one rank. An interactive
    conversation also uses one rank, because the others have no terminal."""
    alone = cfg.runner not in MODEL_RUNNERS or (cfg.runner is Runner.generate and cfg.generate.interactive)
    return (1, 1) if alone else (cfg.cluster.nodes, ranks_per_node(cfg))


def run_layout(cfg: SftConfig, architecture: dict[str, Any]) -> Layout:
    """The layout of `parallel.*`; null sizes get the default of `plan_layout` (planning/auto_parallel.py chooses better ones)."""
    sizes = cfg.parallel
    if is_generic(cfg, architecture):  # data parallelism only, see config/rules_model.py
        sizes = replace(sizes, tp=sizes.tp or 1, pp=sizes.pp or 1, cp=sizes.cp or 1, ep=sizes.ep or 1)
    return plan_layout(
        architecture,
        cfg.seq_length,
        cfg.cluster.nodes,
        ranks_per_node(cfg),
        tp=sizes.tp,
        pp=sizes.pp,
        cp=sizes.cp,
        ep=sizes.ep,
        dp_replicate=sizes.dp_replicate,
        vp=sizes.vp,
    )


def possible_layouts(cfg: SftConfig, architecture: dict[str, Any]) -> Iterator[Layout]:
    """Every layout that the world, the model, seq_length and the global batch allow, with the sizes set in `parallel.*`."""
    nodes, ranks = cfg.cluster.nodes, ranks_per_node(cfg)
    requested, world = cfg.parallel, nodes * ranks
    most = 1 if is_generic(cfg, architecture) else world
    experts = most if num_experts(architecture) else 1
    balancing = cfg.train.router_aux_loss or cfg.train.router_bias_update_rate
    stages = 1 if balancing and cfg.train.recompute is not Recompute.none else most  # see config/rules_model.py
    whole = cfg.peft is not None and cfg.peft.quantize_base is not None  # quantized weights are not split
    sizes = [
        (requested.tp, 1 if whole else min(most, ranks)),
        (requested.pp, stages),
        (requested.cp, most),
        (requested.ep, experts),
    ]
    for tp, pp, cp, ep in product(*([size] if size else _divisors(limit) for size, limit in sizes)):
        if world % (tp * pp * cp):
            continue
        layout = Layout(nodes, ranks, tp, pp, cp, ep, requested.dp_replicate, requested.vp)
        if rows_per_step(cfg.train, cfg.seq_length) % layout.dp == 0 and not any(
            layout_problems(layout, architecture, cfg.seq_length)
        ):
            yield layout


def _divisors(number: int) -> list[int]:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def rows_per_step(train: TrainConfig, seq_length: int) -> int:
    """Packed sequences of one optimizer step, over all ranks (the global batch size)."""
    if train.global_batch_tokens is not None:
        return max(1, train.global_batch_tokens // seq_length)
    return train.global_batch_size or DEFAULT_ROWS
