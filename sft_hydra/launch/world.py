"""The world of a run: how many ranks there are and how they are laid out. Torch-free; CUDA is asked through its driver."""

import os
from pathlib import Path
from typing import Any

from sft_hydra.config.schema import ClusterKind, Device, SftConfig
from sft_hydra.parallel.layout import Layout, plan_layout

SLURM_GPUS_PER_NODE = 8  # where a profile says nothing


def gpus_here() -> int:
    """Visible NVIDIA devices of this machine, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def ranks_per_node(cfg: SftConfig) -> int:
    if cfg.cluster.gpus_per_node is not None:
        return cfg.cluster.gpus_per_node
    if cfg.cluster.kind is ClusterKind.slurm:
        return SLURM_GPUS_PER_NODE
    return max(1, gpus_here()) if cfg.device in (Device.auto, Device.cuda) else 1


def run_layout(cfg: SftConfig, architecture: dict[str, Any]) -> Layout:
    """The layout of this run: what `parallel.*` says, the rest planned."""
    sizes = cfg.parallel
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
    )
