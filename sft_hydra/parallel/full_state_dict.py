"""Whole tensors of a model that is spread over ranks, one after the other on the first rank."""

from collections.abc import Iterator

import torch
import torch.distributed as dist

from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.parallel.dtensor import full_tensor
from sft_hydra.parallel.mesh import Mesh

Tensors = dict[str, torch.Tensor]


def full_tensors(tensors: Tensors, mesh: Mesh) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of all pipeline stages by name, whole: on the first rank, on the CPU; other ranks get nothing, but all
    must go through to the end. Without other ranks, the tensors as they are."""
    if mesh.layout.world == 1:
        yield from tensors.items()
        return
    described = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
    everyone = all_gather_objects((mesh.pp.rank, mesh.dp.rank == 0 and mesh.slice == 0, described), mesh)
    senders = {stage: (rank, names) for rank, (stage, sends, names) in enumerate(everyone) if sends}
    for stage, (sender, names) in sorted(senders.items()):
        for name, shape, dtype in names:
            if stage == mesh.pp.rank:
                whole = full_tensor(tensors[name]).cpu()
                if mesh.rank == sender != 0:
                    dist.send(whole, 0)
            elif mesh.rank == 0:
                whole = torch.empty(shape, dtype=dtype)
                dist.recv(whole, sender)
            if mesh.rank == 0:
                yield name, whole
