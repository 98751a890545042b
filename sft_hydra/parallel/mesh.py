"""Process groups and device meshes of this rank in a layout.

Order of ranks: rank = ((pp_rank * dp + dp_rank) * cp + cp_rank) * tp + tp_rank, so that the groups with the most traffic
are closest. A single rank has the mesh `SINGLE`, whose groups have size 1 and no handle.

Owner of: ranks are numbered in one place.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sft_hydra.planning.layout import Layout


@dataclass(frozen=True, slots=True)
class Group:
    """A process group; `rank` is this rank's index in it."""

    size: int = 1
    rank: int = 0
    handle: dist.ProcessGroup | None = None  # None for size 1


@dataclass(frozen=True, slots=True)
class Mesh:
    """The groups of this rank. The three device meshes are None if there is only one rank."""

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    device: torch.device | None = None  # None: the device of the model's parameters
    pp: Group = Group()
    dp: Group = Group()
    cp: Group = Group()
    tp: Group = Group()
    ep: Group = Group()
    cp_heads: Group = Group()  # within a context group: ranks that exchange tokens for heads (all-to-all)
    cp_rows: Group = Group()  # within a context group: ranks that all-gather keys and values
    dense_mesh: DeviceMesh | None = None  # [replicate,] shard: parameters that no other dimension splits
    tp_mesh: DeviceMesh | None = None  # [replicate,] shard, split: parameters split by tensor parallelism
    ep_mesh: DeviceMesh | None = None  # [replicate,] shard, split: routed experts

    @property
    def seq_rank(self) -> int:
        """Index of the sequence slice, of cp * tp, that this rank holds between mixers."""
        return self.cp.rank * self.tp.size + self.tp.rank

    @property
    def is_row_owner(self) -> bool:
        """Whether this rank counts the packed sequences that it shares with the ranks of its cp, tp and pp groups."""
        return self.pp.rank == 0 and self.seq_rank == 0


SINGLE = Mesh()


def make_mesh(layout: Layout, device: torch.device, heads: int = 1) -> Mesh:
    """The mesh of the initialized process group for `layout`; SINGLE without one. A collective: all ranks must call it.

    `heads`: query heads of one tensor-parallel rank. Up to that number context-parallel ranks exchange tokens for heads
    (Ulysses); beyond it they all-gather keys and values.
    """
    if not dist.is_initialized():
        return SINGLE
    if dist.get_world_size() != layout.world:
        raise AssertionError(f"{dist.get_world_size()} ranks were started for a layout of {layout.world} ranks")
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

    dense = sharded(1)
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
        dense_mesh=dense["replicate", "shard"] if replicate > 1 else dense["shard"],
        tp_mesh=sharded(layout.tp),
        ep_mesh=expert,
    )


def head_ranks(cp: int, heads: int) -> int:
    """Largest number of context-parallel ranks that divides both `cp` and `heads`."""
    return max(n for n in range(1, cp + 1) if cp % n == 0 and heads % n == 0)


def _group(mesh: DeviceMesh, name: str) -> Group:
    group = mesh[name]
    if group.size() == 1:
        return Group()
    return Group(group.size(), group.get_local_rank(), group.get_group())
