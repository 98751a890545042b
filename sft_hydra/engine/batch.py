"""Packed sequences -> the tensors of one micro-batch and the local shard of them. The only place where labels are shifted.

Owner of: labels are shifted once.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from sft_hydra.errors import DataError
from sft_hydra.models.embedding_noise import EmbeddingNoise, noise_of
from sft_hydra.parallel.mesh import Mesh
from sft_hydra.records import IGNORE_INDEX, PackedRow


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of one or several packed sequences, concatenated; each conversation is a document."""

    input_ids: torch.Tensor  # (T,) int64
    position_ids: torch.Tensor  # (T,) int64, from 0 in every document
    cu_seqlens: torch.Tensor  # (documents + 1,) int32
    max_seqlen: int
    targets: torch.Tensor  # (T,) int64: the next token, IGNORE_INDEX where there is no loss
    trained: torch.Tensor  # (N,) int64: indices of the supervised targets
    source_ids: torch.Tensor  # (T,) int64: source of the token's document
    num_tokens: int  # without padding
    num_trained: int  # supervised targets
    num_trained_sequences: int  # documents with at least one supervised target
    noise: EmbeddingNoise | None = None  # on the embeddings of these tokens

    def num_real(self, mesh: Mesh) -> int:
        """How many of this rank's tokens are not padding; padding comes after them."""
        local = len(self.input_ids)
        return min(max(self.num_tokens - mesh.seq_rank * local, 0), local)

    def part(self, mesh: Mesh, device: torch.device) -> "Batch":
        """The local shard of this batch on `device`: ids, targets and sources (T / (cp * tp),) of this rank, positions
        (T / cp,) of its tensor-parallel group, `cu_seqlens` and counts of the full batch. T must be divisible by cp * tp.

        Called on a batch in CPU memory, so that no later step has to synchronize with the device.
        """
        slices = mesh.cp.size * mesh.tp.size

        def shard(tokens: torch.Tensor, count: int, index: int) -> torch.Tensor:
            return _moved(tokens.chunk(count)[index], device)

        targets = self.targets.chunk(slices)[mesh.seq_rank]
        return replace(
            self,
            input_ids=shard(self.input_ids, slices, mesh.seq_rank),
            targets=_moved(targets, device),
            trained=_moved(_supervised_positions(targets), device),
            source_ids=shard(self.source_ids, slices, mesh.seq_rank),
            position_ids=shard(self.position_ids, mesh.cp.size, mesh.cp.rank),
            cu_seqlens=_moved(self.cu_seqlens, device),
            noise=self.noise
            and EmbeddingNoise(*(shard(each, slices, mesh.seq_rank) for each in (self.noise.keys, self.noise.sizes))),
        )

    def with_noise(self, hidden: int, alpha: float | None, seed: int) -> "Batch":
        """The same batch of whole tokens, with NEFTune's noise on embeddings of `hidden` channels; None: without."""
        if alpha is None:
            return self
        return replace(self, noise=noise_of(self.input_ids, self.position_ids, self.cu_seqlens, hidden, alpha, seed))


def make_batch(rows: list[PackedRow], device: torch.device | str, multiple: int = 1) -> Batch:
    """One micro-batch of the packed sequences `rows`, padded to a `multiple` of tokens by one extra unsupervised document.

    Without rows, it is padding only. DataError if a loss mask supervises the token after the end of a conversation.
    """
    num_tokens = sum(len(row.input_ids) for row in rows)
    missing = multiple if not rows else -num_tokens % multiple
    if missing:
        rows = [*rows, _padding(missing)]
    input_ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
    trained = np.concatenate([row.loss_mask for row in rows]).astype(bool)
    lengths = np.concatenate([np.diff(row.seq_start_id, append=len(row.input_ids)) for row in rows])
    cu_seqlens = np.concatenate([[0], lengths.cumsum()])
    if trained[cu_seqlens[1:] - 1].any():
        raise DataError(
            "a packed sequence supervises the token after the end of a conversation: its loss_mask must be shifted left by "
            "one inside each conversation, with 0 at its last token"
        )
    targets = np.full_like(input_ids, IGNORE_INDEX)
    targets[:-1][trained[:-1]] = input_ids[1:][trained[:-1]]
    starts = cu_seqlens[:-1]
    arrays = (
        input_ids,
        np.arange(len(input_ids)) - np.repeat(starts, lengths),
        targets,
        np.repeat(np.concatenate([row.source_id for row in rows]).astype(np.int64), lengths),
    )
    ids, positions, labels, sources = (torch.from_numpy(array).to(device) for array in arrays)
    return Batch(
        input_ids=ids,
        position_ids=positions,
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)).to(device),
        max_seqlen=int(lengths.max()),
        targets=labels,
        trained=_supervised_positions(labels),
        source_ids=sources,
        num_tokens=num_tokens,
        num_trained=int(trained.sum()),
        num_trained_sequences=int(np.logical_or.reduceat(trained, starts).sum()),
    )


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device, which the host does not wait for: from pinned memory, else a copy to CUDA is synchronous."""
    source = tensor.pin_memory() if device.type == "cuda" else tensor
    return source.to(device, non_blocking=True)


def _supervised_positions(targets: torch.Tensor) -> torch.Tensor:
    return (targets != IGNORE_INDEX).nonzero()[:, 0]


def _padding(tokens: int) -> PackedRow:
    first = np.zeros(1, dtype=np.int32)
    return PackedRow(np.zeros(tokens, dtype=np.int32), np.zeros(tokens, dtype=np.uint8), first, first.astype(np.int16))
