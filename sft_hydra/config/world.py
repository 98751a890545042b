"""The world of a run: how many ranks there are and how they are laid out. Set by the user, never guessed from hardware."""

from dataclasses import replace
from typing import Any

from sft_hydra.config.architecture import is_generic
from sft_hydra.config.schema import ClusterKind, Runner, SftConfig
from sft_hydra.parallel.layout import Layout, plan_layout

SLURM_GPUS_PER_NODE = 8  # where a profile says nothing
DEFAULT_ROWS = 8  # train.global_batch_size where nothing is said


def ranks_per_node(cfg: SftConfig) -> int:
    if cfg.cluster.gpus_per_node is not None:
        return cfg.cluster.gpus_per_node
    return SLURM_GPUS_PER_NODE if cfg.cluster.kind is ClusterKind.slurm else 1


def ranks_of_runner(cfg: SftConfig) -> tuple[int, int]:
    """(nodes, ranks on each) that the runner uses: training takes the whole cluster, everything else one rank."""
    return (cfg.cluster.nodes, ranks_per_node(cfg)) if cfg.runner is Runner.train else (1, 1)


def run_layout(cfg: SftConfig, architecture: dict[str, Any]) -> Layout:
    """The layout of this run: what `parallel.*` says, the rest planned."""
    sizes = cfg.parallel
    if is_generic(cfg, architecture):  # nothing but data parallelism, see rules.py
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


def rows_per_step(cfg: SftConfig) -> int:
    """Packed rows of one optimizer step, over all ranks."""
    if cfg.train.global_batch_tokens is not None:
        return max(1, cfg.train.global_batch_tokens // cfg.seq_length)
    return cfg.train.global_batch_size or DEFAULT_ROWS
