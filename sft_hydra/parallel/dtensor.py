"""Sharded parameters: the local shard of one, and the tensor that this rank computes with.

DTensor is used for storage, plain tensors for compute: only these functions deal with DTensor.
"""

import logging

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

logging.getLogger("torch.distributed.tensor._redistribute").setLevel(
    logging.ERROR
)  # it logs every redistribution at length


def local_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """The tensor that this rank computes with, inside a forward pass; differentiable.

    Where a split layer replicates a parameter, the gradient of each rank is a partial sum.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    grads = [Partial() if place.is_replicate() else place for place in parameter.placements]
    return parameter.to_local(grad_placements=grads)


def partial_sum_ranks(weight: torch.Tensor) -> int:
    """Number of ranks over which products with this weight are partial sums: those that split its input dimension."""
    if not isinstance(weight, DTensor):
        return 1
    return weight.device_mesh.size() if any(place.is_shard(1) for place in weight.placements) else 1


def sum_over_split_inputs(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over the ranks that split the input dimension of `weight`; without gradient."""
    if partial_sum_ranks(weight) > 1:
        assert isinstance(weight, DTensor)
        dist.all_reduce(values, group=weight.device_mesh.get_group())
    return values


def local_shard(parameter: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The local shard of a parameter, without gradient, and its slices in the full tensor. For use between steps."""
    parameter = parameter.detach()
    if not isinstance(parameter, DTensor):
        return parameter, tuple(slice(0, size) for size in parameter.shape)
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local(), tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def holds_first_copy(parameter: torch.Tensor) -> bool:
    """Whether this rank is the first of those that store the same shard of a parameter."""
    if not isinstance(parameter, DTensor):
        return True
    coordinate = parameter.device_mesh.get_coordinate()
    assert coordinate is not None
    return all(
        not place.is_replicate() or position == 0
        for place, position in zip(parameter.placements, coordinate, strict=True)
    )


def copy_shard_(parameter: torch.Tensor, full: torch.Tensor) -> None:
    """Set a parameter from its full value, of the unsharded shape; every rank copies its local shard."""
    shard, where = local_shard(parameter)
    shard.copy_(full[where])


def full_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """The unsharded tensor, without gradient. A collective: all ranks with a shard must call it."""
    parameter = parameter.detach()
    if not isinstance(parameter, DTensor):
        return parameter
    split = parameter.placements[-1]  # with several placements, tensor or expert shards lie within the FSDP shards
    placements = [Replicate()] * (len(parameter.placements) - 1) + [split]
    return parameter.redistribute(placements=placements).full_tensor()
