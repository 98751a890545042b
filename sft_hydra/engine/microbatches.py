"""Which rows a rank takes of a global batch, and the passes over its micro-batches.

Owns that layouts do not show: every data-parallel rank runs the same number of micro-batches, the last ones possibly of
padding only, and what they sum up to is what one process would have computed.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.engine.load_balancing import balanced_shares
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.parallel.mesh import Mesh
from sft_hydra.parallel.parallelize import reshard
from sft_hydra.records import PackedRow
from sft_hydra.schema.config import SftConfig


class Rows(Protocol):
    """Packed rows by their global number: row i is the same whenever it is asked for."""

    def __getitem__(self, index: int, /) -> PackedRow: ...


class TrainingRows(Rows, Protocol):
    def costs(self, numbers: range, /) -> Sequence[float]:
        """What attention costs in each of these rows: the sum of their squared lengths. Asked for if ranks share them."""


def assign_rows(rows: TrainingRows, numbers: range, size: int, mesh: Mesh) -> list[list[int]]:
    """Row numbers of this rank's micro-batches of a training step: an even share of `numbers` by number and cost."""
    if mesh.dp.size == 1:
        return [list(part) for part in split_rows(numbers, size, mesh)]
    shares = balanced_shares(rows.costs(numbers), mesh.dp.size, size)
    return [[numbers[i] for i in part] for part in shares[mesh.dp.rank]]


def split_rows(numbers: range, size: int, mesh: Mesh) -> list[range]:
    """Row numbers of this rank's micro-batches of `size` rows: an even, contiguous share of `numbers`."""
    share = -(-len(numbers) // mesh.dp.size)
    own = numbers[mesh.dp.rank * share : (mesh.dp.rank + 1) * share]
    return [own[i : i + size] for i in range(0, share, size)]


def load_batches(
    rows: Rows, micro_batches: Sequence[Sequence[int]], model: DecoderModel, cfg: SftConfig
) -> list[Batch]:
    """This rank's part of each micro-batch, on its device."""
    mesh, device = model.mesh, model.device
    multiple = mesh.cp.size * mesh.tp.size
    if mesh.pp.size > 1:  # stages send each other tensors of one size
        multiple *= -(-cfg.train.micro_batch_size * cfg.seq_length // multiple)
    batches = (make_batch([rows[n] for n in numbers], "cpu", multiple) for numbers in micro_batches)
    return [batch.part(mesh, device) for batch in batches]


def forward_backward(
    model: DecoderModel, batches: list[Batch], count: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Add the gradient of (sum of losses / count) of all micro-batches. Returns of each the summed loss and the loss of
    every token of this rank (t,); zeros on ranks that do not hold the end of a pipeline."""
    if model.pipeline is not None:
        return _losses(model.pipeline.forward_backward(batches, count), batches)
    losses, token_losses = [], []
    for batch in batches:
        loss_sum, per_token = forward_loss(model, batch)
        (loss_sum / count).backward()
        losses.append(loss_sum.detach())
        token_losses.append(per_token)
    return losses, token_losses


@torch.no_grad()
def forward_only(model: DecoderModel, batches: list[Batch]) -> list[torch.Tensor]:
    """The loss of every token of this rank (t,), of each micro-batch."""
    if model.pipeline is not None:
        token_losses = _losses(model.pipeline.forward(batches), batches)[1]
    else:
        token_losses = [forward_loss(model, batch)[1] for batch in batches]
    reshard(model.roots)
    return token_losses


@torch.no_grad()
def forward_hidden(model: DecoderModel, batch: Batch) -> torch.Tensor | None:
    """Hidden states of this rank's tokens (t, D) after the final norm; None on ranks without the end of a pipeline.

    Several ranks compute as they train; one alone in the precision that its weights are kept in.
    """
    trains_in = model.rounds_to
    if model.mesh.layout.world == 1:
        model.rounds_to = None
    if model.pipeline is not None:
        hidden = model.pipeline.forward([batch], targets=False).get(0)
    else:
        hidden = model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)
    model.rounds_to = trains_in
    reshard(model.roots)
    return hidden


def _losses(results: dict[int, Any], batches: list[Batch]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    zeros = [batch.targets.new_zeros(batch.targets.shape, dtype=torch.float32) for batch in batches]
    losses = [results[i][0] if i in results else zeros[i].sum() for i in range(len(batches))]
    return losses, [results[i][1] if i in results else zeros[i] for i in range(len(batches))]


def forward_loss(model: DecoderModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the losses of the batch's trained tokens, and the loss of every token (t,)."""
    for balance in model.balances:
        balance.real = batch.num_real(model.mesh)
    borders = batch.cu_seqlens, batch.max_seqlen
    return model(batch.input_ids, batch.position_ids, *borders, batch.targets, batch.trained)
