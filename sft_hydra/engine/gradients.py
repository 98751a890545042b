"""Global gradient norm over all local shards, and gradient clipping."""

import math

import torch
from torch import nn

from sft_hydra.models.decoder import DecoderModel
from sft_hydra.parallel.collectives import sum_over_ranks
from sft_hydra.parallel.dtensor import holds_first_copy, local_shard


def clip_gradients(model: DecoderModel, limit: float | None) -> float:
    """Scale the gradient down to the norm `limit` if it is larger. Returns the norm before clipping.

    torch.nn.utils.clip_grad_norm_ does not accept parameters on different device meshes; this sums the squares of local
    shards, counting replicated shards once.
    """
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    counted = [local_shard(grad)[0] for name, grad in gradients if holds_first_copy(grad) and not model.is_copy(name)]
    square = float(nn.utils.get_total_norm(counted)) ** 2
    norm = math.sqrt(sum_over_ranks([square], model.mesh)[0])
    if gradients and limit is not None and norm > limit:
        torch._foreach_mul_([local_shard(grad)[0] for _, grad in gradients], limit / (norm + 1e-6))
    return norm
