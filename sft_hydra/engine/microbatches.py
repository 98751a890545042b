"""Which packed sequences of a global batch a rank takes, and the forward and backward passes over its micro-batches.

Every data-parallel rank runs the same number of micro-batches, the last ones possibly padding only; summed over ranks they
give the loss and gradient that a single process would compute.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch

from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.engine.load_balancing import balanced_shares
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.weight_copies import kept_copies
from sft_hydra.parallel.mesh import Mesh
from sft_hydra.parallel.parallelize import reshard
from sft_hydra.records import PackedRow


class Rows(Protocol):
    """Packed sequences by global index; reading an index twice gives the same sequence."""

    def __getitem__(self, index: int, /) -> PackedRow: ...


class TrainingRows(Rows, Protocol):
    """Packed sequences of training, with their attention costs."""

    def costs(self, numbers: range, /) -> Sequence[float]:
        """Attention cost of each packed sequence: the sum of its squared document lengths. Used with several data ranks."""


def assign_rows(rows: TrainingRows, numbers: range, size: int, mesh: Mesh) -> list[list[int]]:
    """Indices of the packed sequences in each of this rank's micro-batches of a training step, balanced by count and
    attention cost; `size` is the micro-batch size."""
    if mesh.dp.size == 1:
        return [list(part) for part in split_rows(numbers, size, mesh)]
    shares = balanced_shares(rows.costs(numbers), mesh.dp.size, size)
    return [[numbers[i] for i in part] for part in shares[mesh.dp.rank]]


def split_rows(numbers: range, size: int, mesh: Mesh) -> list[range]:
    """Indices of the packed sequences in each of this rank's micro-batches of `size`: a contiguous share of `numbers`."""
    share = -(-len(numbers) // mesh.dp.size)
    local = numbers[mesh.dp.rank * share : (mesh.dp.rank + 1) * share]
    return [local[i : i + size] for i in range(0, share, size)]


def load_batches(
    rows: Rows,
    micro_batches: Sequence[Sequence[int]],
    model: DecoderModel,
    full_tokens: int,
    noise: tuple[float | None, int] = (None, 0),
) -> list[Batch]:
    """The local shard of each micro-batch, on this rank's device. `full_tokens`: tokens of a full micro-batch, which pipeline
    stages pad every micro-batch to; `noise`: train.neftune_alpha, and the seed of this step."""
    mesh, device = model.mesh, model.device
    multiple = mesh.cp.size * mesh.tp.size
    if mesh.pp.size > 1:  # pipeline stages exchange tensors of a fixed size
        multiple *= -(-full_tokens // multiple)
    batches = (make_batch([rows[n] for n in numbers], "cpu", multiple) for numbers in micro_batches)
    return [batch.with_noise(model.config.hidden_size, *noise).part(mesh, device) for batch in batches]


def forward_backward(
    model: DecoderModel, batches: list[Batch], count: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Accumulate the gradient of (sum of losses / count) over all micro-batches.

    Returns, for each micro-batch, the summed loss (scalar) and the loss of every local token (t,), both fp32; zeros on
    ranks without the last pipeline stage.
    """
    if model.pipeline is not None:
        return _losses(model.pipeline.forward_backward(batches, count), batches)
    losses, token_losses = [], []
    with kept_copies(model) if model.keeps_weight_copies and len(batches) > 1 else nullcontext():
        for batch in batches:
            loss_sum, per_token = forward_loss(model, batch)
            (loss_sum / count).backward()
            losses.append(loss_sum.detach())
            token_losses.append(per_token)
    return losses, token_losses


@torch.no_grad()
def forward_only(model: DecoderModel, batches: list[Batch]) -> list[torch.Tensor]:
    """For each micro-batch, the loss of every local token (t,) fp32, without gradient."""
    if model.pipeline is not None:
        token_losses = _losses(model.pipeline.forward(batches), batches)[1]
    else:
        token_losses = [forward_loss(model, batch)[1] for batch in batches]
    reshard(model.roots)
    return token_losses


@torch.no_grad()
def forward_hidden(model: DecoderModel, batch: Batch) -> torch.Tensor | None:
    """Hidden states (t, D) of the local tokens after the final norm; None on ranks without the last pipeline stage.

    With several ranks in the compute dtype of training; with a single rank in the dtype of the stored weights.
    """
    compute_dtype, model.noise = model.rounds_to, batch.noise
    if model.mesh.layout.world == 1:
        model.rounds_to = None
    if model.pipeline is not None:
        hidden = model.pipeline.forward([batch], targets=False).get(0)
    else:
        hidden = model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)
    model.rounds_to = compute_dtype
    reshard(model.roots)
    return hidden


def _losses(results: dict[int, Any], batches: list[Batch]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    zeros = [batch.targets.new_zeros(batch.targets.shape, dtype=torch.float32) for batch in batches]
    losses = [results[i][0] if i in results else zeros[i].sum() for i in range(len(batches))]
    return losses, [results[i][1] if i in results else zeros[i] for i in range(len(batches))]


def forward_loss(model: DecoderModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss over the batch's supervised tokens (scalar), and the loss of every local token (t,)."""
    model.observe_batch(batch)
    boundaries, model.noise = (batch.cu_seqlens, batch.max_seqlen), batch.noise
    return model(batch.input_ids, batch.position_ids, *boundaries, batch.targets, batch.trained)
