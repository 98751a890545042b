"""Full tensors of a sharded model, gathered one at a time to rank 0."""

from collections.abc import Iterator

import torch
import torch.distributed as dist

from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.parallel.dtensor import full_tensor
from sft_hydra.parallel.mesh import Mesh

Tensors = dict[str, torch.Tensor]


def full_tensors(tensors: Tensors, mesh: Mesh, *, everywhere: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, full tensor) of all pipeline stages: on rank 0, on the CPU; other ranks yield nothing. `everywhere`: on every
    rank, on its device.

    A collective: all ranks must iterate to the end. With a single rank, the tensors as they are.
    """
    if mesh.layout.world == 1:
        yield from tensors.items()
        return
    described = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
    everyone = all_gather_objects((mesh.pp.rank, mesh.dp.rank == 0 and mesh.seq_rank == 0, described), mesh)
    senders = {stage: (rank, names) for rank, (stage, sends, names) in enumerate(everyone) if sends}
    for stage, (sender, names) in sorted(senders.items()):
        for name, shape, dtype in names:
            if everywhere:
                yield name, _on_every_rank(tensors.get(name), shape, dtype, mesh, sender)
                continue
            if stage == mesh.pp.rank:
                tensor = full_tensor(tensors[name]).cpu()
                if mesh.rank == sender != 0:
                    dist.send(tensor, 0)
            elif mesh.rank == 0:
                tensor = torch.empty(shape, dtype=dtype)
                dist.recv(tensor, sender)
            if mesh.rank == 0:
                yield name, tensor


def _on_every_rank(
    tensor: torch.Tensor | None, shape: torch.Size, dtype: torch.dtype, mesh: Mesh, sender: int
) -> torch.Tensor:
    """The full tensor from the shards of its pipeline stage (None: this rank is of another), which `sender` belongs to."""
    full = torch.empty(shape, dtype=dtype, device=mesh.device) if tensor is None else full_tensor(tensor)
    if mesh.pp.size > 1:
        full = full.contiguous()
        dist.broadcast(full, sender)
    return full
