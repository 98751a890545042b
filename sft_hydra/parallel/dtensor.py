"""Parameters that are spread over ranks: what this rank holds of one, and what it computes with.

Owns the rule "DTensor as storage, plain tensors in compute": outside of these functions nobody asks what a DTensor is.
"""

import logging

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

logging.getLogger("torch.distributed.tensor._redistribute").setLevel(
    logging.ERROR
)  # it tells how it gathers, at length


def local_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that this rank computes with, inside a forward pass.

    Where a split layer holds a parameter whole on every rank, each rank's gradient is a part of the sum.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    grads = [Partial() if place.is_replicate() else place for place in parameter.placements]
    return parameter.to_local(grad_placements=grads)


def partial_sum_ranks(weight: torch.Tensor) -> int:
    """Over how many ranks the products with this weight have to be summed: those that split its inputs."""
    if not isinstance(weight, DTensor):
        return 1
    return weight.device_mesh.size() if any(place.is_shard(1) for place in weight.placements) else 1


def local_shard(parameter: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """What this rank stores of a parameter, and where that lies in the whole. Between steps, not inside of them."""
    parameter = parameter.detach()
    if not isinstance(parameter, DTensor):
        return parameter, tuple(slice(0, size) for size in parameter.shape)
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local(), tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def holds_first_copy(parameter: torch.Tensor) -> bool:
    """Whether, of the ranks that store the same part of a parameter, this is the first."""
    if not isinstance(parameter, DTensor):
        return True
    coordinate = parameter.device_mesh.get_coordinate()
    assert coordinate is not None
    return all(
        not place.is_replicate() or position == 0
        for place, position in zip(parameter.placements, coordinate, strict=True)
    )


def copy_shard_(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    """Set a parameter from its whole value; every rank keeps its part."""
    part, where = local_shard(parameter)
    part.copy_(whole[where])


def full_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """The whole of a parameter. All ranks that hold a part of it must ask."""
    parameter = parameter.detach()
    if not isinstance(parameter, DTensor):
        return parameter
    split = parameter.placements[-1]  # a tensor or expert dimension, if there are several, is within the others' shards
    whole_split = [Replicate()] * (len(parameter.placements) - 1) + [split]
    return parameter.redistribute(placements=whole_split).full_tensor()
