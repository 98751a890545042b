"""Where this rank stands in a layout and whom it talks to.

Owns the order of ranks: rank = ((pp * dp + dp_rank) * cp + cp_rank) * tp + tp_rank, so that the groups that talk most sit
closest. Without other ranks everything here exists too: `SINGLE`, whose groups have one member and no handle.

Owner of: ranks are numbered in one place.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sft_hydra.planning.layout import Layout


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that act together; `rank` is this rank's place among them."""

    size: int = 1
    rank: int = 0
    handle: dist.ProcessGroup | None = None  # None: alone


@dataclass(frozen=True, slots=True)
class Mesh:
    """The groups of this rank. The last three are None if there is only one rank."""

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    device: torch.device | None = None  # None: wherever the model is
    pp: Group = Group()
    dp: Group = Group()
    cp: Group = Group()
    tp: Group = Group()
    ep: Group = Group()
    cp_heads: Group = Group()  # of a context group, neighbours that swap tokens for heads
    cp_rows: Group = Group()  # of a context group, ranks that gather each other's keys and values
    whole: DeviceMesh | None = None  # [replicate,] shard: what no other dimension splits
    tensor: DeviceMesh | None = None  # [replicate,] shard, split: what tensor parallelism splits
    expert: DeviceMesh | None = None  # [replicate,] shard, split: routed experts

    @property
    def slice(self) -> int:
        """Which of the layout's cp * tp slices of a row this rank holds between mixers."""
        return self.cp.rank * self.tp.size + self.tp.rank

    @property
    def is_row_owner(self) -> bool:
        """Whether this rank counts the rows that it shares with the other ranks of its cp, tp and pp groups."""
        return self.pp.rank == 0 and self.slice == 0


SINGLE = Mesh()


def make_mesh(layout: Layout, device: torch.device, heads: int = 1) -> Mesh:
    """The groups of the started process group, laid out as `layout` says; SINGLE if there is none. All ranks must call it.

    `heads`: query heads of one tensor-parallel rank. Context ranks swap tokens for heads up to that number; beyond it,
    they gather keys and values.
    """
    if not dist.is_initialized():
        return SINGLE
    if dist.get_world_size() != layout.world:
        raise AssertionError(f"{dist.get_world_size()} ranks were started for a layout of {layout.world}")
    pp, replicate, stage = layout.pp, layout.dp_replicate, layout.world // layout.pp
    kind = device.type
    by_heads = head_ranks(layout.cp, heads)
    tokens = init_device_mesh(
        kind,
        (pp, layout.dp, layout.cp // by_heads, by_heads, layout.tp),
        mesh_dim_names=("pp", "dp", "cp_rows", "cp_heads", "tp"),
    )
    context = init_device_mesh(kind, (pp, layout.dp, layout.cp, layout.tp), mesh_dim_names=("pp", "dp", "cp", "tp"))

    def sharded(split: int) -> DeviceMesh:
        sizes, names = (pp, replicate, stage // replicate // split, split), ("pp", "replicate", "shard", "split")
        mesh = init_device_mesh(kind, sizes, mesh_dim_names=names)
        return mesh[names[1:] if replicate > 1 else names[2:]]

    whole = sharded(1)
    return Mesh(
        layout=layout,
        rank=dist.get_rank(),
        device=device,
        pp=_group(tokens, "pp"),
        dp=_group(tokens, "dp"),
        cp=_group(context, "cp"),
        tp=_group(tokens, "tp"),
        ep=_group(expert := sharded(layout.ep), "split"),
        cp_heads=_group(tokens, "cp_heads"),
        cp_rows=_group(tokens, "cp_rows"),
        whole=whole["replicate", "shard"] if replicate > 1 else whole["shard"],
        tensor=sharded(layout.tp),
        expert=expert,
    )


def head_ranks(cp: int, heads: int) -> int:
    """Largest number of context ranks that divides both `cp` and the heads."""
    return max(n for n in range(1, cp + 1) if cp % n == 0 and heads % n == 0)


def _group(mesh: DeviceMesh, name: str) -> Group:
    group = mesh[name]
    if group.size() == 1:
        return Group()
    return Group(group.size(), group.get_local_rank(), group.get_group())
