"""The norm of the whole gradient, from what each rank holds of it, and its clipping."""

import math

import torch
from torch import nn

from sft_hydra.models.decoder import DecoderModel
from sft_hydra.parallel.collectives import sum_over_ranks
from sft_hydra.parallel.dtensor import holds_first_copy, local_shard


def clip_gradients(model: DecoderModel, limit: float | None) -> float:
    """Scale the gradient down to the norm `limit` if it is larger. Returns its norm before that.

    torch's own clipping refuses parameters that lie on different meshes; ours sums the squares of local parts, each part
    once however many ranks hold a copy of it.
    """
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    counted = [local_shard(grad)[0] for name, grad in gradients if holds_first_copy(grad) and not model.is_copy(name)]
    square = float(nn.utils.get_total_norm(counted)) ** 2
    norm = math.sqrt(sum_over_ranks([square], model.mesh)[0])
    if limit is not None and norm > limit:
        torch._foreach_mul_([local_shard(grad)[0] for _, grad in gradients], limit / (norm + 1e-6))
    return norm
