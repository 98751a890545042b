"""Automatic layout: the fastest of those that fit in memory fills the sizes that `parallel.*` leaves null, once, before ranks
are started. No hardware is inspected, so a command gives the same layout on a laptop and on the cluster.

Owner of: the layout that is used where `parallel.*` is null.
"""

from dataclasses import dataclass, replace
from typing import Any

from sft_hydra.planning.architecture import common_names, read_architecture
from sft_hydra.planning.cost_model import step_seconds
from sft_hydra.planning.estimate import GIB, estimate_memory
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.topology import possible_layouts, ranks_of_runner, rows_per_step, run_layout
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.train import Precision

USABLE = 0.92  # share of GPU memory for training: the rest is for the driver and fragmentation
TINY_VOCABULARY = 1024  # placeholder where a random initialization takes the size from the tokenizer
NEEDED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate layout with its estimated cost."""

    layout: Layout
    seconds: float
    """Seconds of one optimizer step, by the cost model."""
    memory: int
    """Peak bytes on one rank, by the memory estimate."""
    fits: bool
    """Whether `memory` fits in the usable part of cluster.gpu_memory_gib."""

    def describe(self) -> str:
        """One line with the sizes, the step time and the memory per rank."""
        sizes = " ".join(f"{name}={getattr(self.layout, name)}" for name in ("tp", "pp", "cp", "ep"))
        return f"{sizes}: {self.seconds:.3g} s a step, {self.memory / GIB:.1f} GiB a rank" + (
            "" if self.fits else ", does not fit"
        )


def with_auto_parallel(cfg: SftConfig) -> SftConfig:
    """The config with every null size of `parallel` filled in. A dry run is left unchanged: it shows how they are chosen."""
    if cfg.dry_run or ranks_of_runner(cfg) == (1, 1):
        return cfg
    return with_layout(cfg, choose(cfg, read_architecture(cfg))[0])


def with_layout(cfg: SftConfig, layout: Layout) -> SftConfig:
    """The config with the sizes of `layout` in `parallel`."""
    return replace(cfg, parallel=replace(cfg.parallel, tp=layout.tp, pp=layout.pp, cp=layout.cp, ep=layout.ep))


def choose(cfg: SftConfig, architecture: dict[str, Any]) -> tuple[Layout, list[Choice]]:
    """The layout to use, and all candidates, best first: those that fit by time, then those that do not fit by memory.

    If the model's sizes are unknown or there is no valid candidate: the default layout and an empty list.
    """
    sizes = common_names(architecture)
    if any(sizes.get(key) is None for key in NEEDED):
        return run_layout(cfg, architecture), []
    sizes["vocab_size"] = sizes.get("vocab_size") or TINY_VOCABULARY
    precision = cfg.train.precision or (Precision.fp32 if cfg.model.path is None else Precision.bf16)
    room, rows = USABLE * cfg.cluster.gpu_memory_gib * GIB, rows_per_step(cfg.train, cfg.seq_length)
    candidates = []
    for layout in possible_layouts(cfg, architecture):
        memory = estimate_memory(cfg, sizes, layout, precision).total
        candidates.append(Choice(layout, step_seconds(cfg, sizes, layout, rows), memory, memory <= room))
    candidates.sort(key=lambda choice: (not choice.fits, choice.seconds if choice.fits else choice.memory))
    return (candidates[0].layout if candidates else run_layout(cfg, architecture)), candidates
