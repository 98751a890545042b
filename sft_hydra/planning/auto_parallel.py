"""Which layout is fastest of those that fit: fills the sizes of parallelism that `parallel.*` leaves null, once, before ranks
are started. Looks at no hardware, so the same command plans the same on a laptop and on the cluster.

Owner of: the layout that is used where `parallel.*` is null.
"""

from dataclasses import dataclass, replace
from typing import Any

from sft_hydra.planning.architecture import common_names, read_architecture
from sft_hydra.planning.cost_model import step_seconds
from sft_hydra.planning.estimate import GIB, estimate_memory
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.topology import possible_layouts, ranks_of_runner, rows_per_step, run_layout
from sft_hydra.schema.config import Precision, Runner, SftConfig

USABLE = 0.92  # of a GPU's memory: the rest is the driver's, and what fragments
TINY_VOCABULARY = 1024  # stands in where a random start takes its size from the tokenizer
NEEDED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")


@dataclass(frozen=True, slots=True)
class Choice:
    layout: Layout
    seconds: float
    """Of one optimizer step, by the cost model."""
    memory: int
    """Bytes of one rank, by the estimate."""
    fits: bool

    def describe(self) -> str:
        sizes = " ".join(f"{name}={getattr(self.layout, name)}" for name in ("tp", "pp", "cp", "ep"))
        return f"{sizes}: {self.seconds:.3g} s a step, {self.memory / GIB:.1f} GiB a rank" + (
            "" if self.fits else ", does not fit"
        )


def with_auto_parallel(cfg: SftConfig) -> SftConfig:
    """The config with every size of `parallel` said. A dry run stays open: it shows how the sizes are chosen."""
    if cfg.dry_run or cfg.runner is not Runner.train or ranks_of_runner(cfg) == (1, 1):
        return cfg
    return with_layout(cfg, choose(cfg, read_architecture(cfg))[0])


def with_layout(cfg: SftConfig, layout: Layout) -> SftConfig:
    return replace(cfg, parallel=replace(cfg.parallel, tp=layout.tp, pp=layout.pp, cp=layout.cp, ep=layout.ep))


def choose(cfg: SftConfig, architecture: dict[str, Any]) -> tuple[Layout, list[Choice]]:
    """The layout to take, and all that were weighed, best first: those that fit by time, those that do not by memory.

    With sizes of the model unknown, or none that can be weighed, it is the plain one and the list is empty.
    """
    sizes = common_names(architecture)
    if any(sizes.get(key) is None for key in NEEDED):
        return run_layout(cfg, architecture), []
    sizes["vocab_size"] = sizes.get("vocab_size") or TINY_VOCABULARY
    precision = cfg.train.precision or (Precision.fp32 if cfg.model.path is None else Precision.bf16)
    room, rows = USABLE * cfg.cluster.gpu_memory_gib * GIB, rows_per_step(cfg)
    found = []
    for layout in possible_layouts(cfg, architecture):
        memory = estimate_memory(cfg, sizes, layout, precision).total
        found.append(Choice(layout, step_seconds(cfg, sizes, layout, rows), memory, memory <= room))
    found.sort(key=lambda choice: (not choice.fits, choice.seconds if choice.fits else choice.memory))
    return (found[0].layout if found else run_layout(cfg, architecture)), found
