"""Reads Megatron checkpoints with the tensor names of a Hugging Face folder (`MegatronWeights`) and writes them
(`write_megatron`).

A checkpoint is an `iter_*` folder, or a run's folder with `latest_checkpointed_iteration.txt`. Only weights are read, not
optimizer state, random state and Transformer Engine's `_extra_state`.
"""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from sft_hydra.checkpoint.torch_dist import TorchDist, TorchDistWriter
from sft_hydra.errors import CheckpointError, ModelError
from sft_hydra.models.megatron_names import Piece, Place, places

WEIGHTS = ("embedding.", "decoder.", "output_layer.", "mtp.")  # prefixes of the keys of model weights
NOT_WEIGHTS = ("_extra_state", "rotary_pos_emb.inv_freq")


class MegatronWeights:
    """The interface that `load_weights` reads from: Hugging Face tensor names and slices of the tensors."""

    def __init__(self, folder: Path, config: Any) -> None:
        self.folder, self.config = folder, config
        self.tensors = TorchDist(folder)
        self._places: dict[str, Place | None] = {}

    def present(self, names: Iterable[str]) -> set[str]:
        """Those of these names whose parts are all in the checkpoint. ModelError if one is stored under two keys."""
        return {name for name in names if self._place(name) is not None}

    def left_over(self, names: Iterable[str]) -> list[str]:
        """Keys of weights that belong to none of these names."""
        used = {piece.key for name in names for piece in self._place(name) or ()}
        keys = [key for key in self.tensors.entries if key.startswith(WEIGHTS) and not key.endswith(NOT_WEIGHTS)]
        return sorted(set(keys) - used)

    def get(self, name: str) -> "MegatronTensor":
        """A lazy slice of the tensor with this name, as in safetensors."""
        place = self._place(name)
        assert place is not None
        return MegatronTensor(self.tensors, name, place)

    def _place(self, name: str) -> Place | None:
        if name not in self._places:
            entries = self.tensors.entries
            found = [place for place in places(self.config, name) if all(piece.key in entries for piece in place)]
            if len(found) > 1:
                keys = " and ".join(place[0].key for place in found)
                raise ModelError(f"{self.folder}: {name} is stored under several keys: {keys}")
            self._places[name] = found[0] if found else None
        return self._places[name]


class MegatronTensor:
    """One tensor of a Hugging Face folder, assembled from Megatron's."""

    def __init__(self, tensors: TorchDist, name: str, place: Place) -> None:
        self.tensors, self.name, self.place = tensors, name, place
        self.rows = [self._rows(piece) for piece in place]

    def _rows(self, piece: Piece) -> tuple[int, int]:
        shape = self.tensors.entries[piece.key].shape
        depth = len(piece.index)
        rows = shape[depth] if len(shape) > depth else 0
        start, stop = piece.rows or (0, rows)
        if shape[:depth] != piece.stacked or stop > rows or (piece.of is not None and rows != piece.of):
            wanted = (*piece.stacked, piece.of or stop, "...")
            raise ModelError(
                f"{self.tensors.folder}: {piece.key} has shape {shape}, but {wanted} by the model's config"
            )
        return start, stop

    def get_shape(self) -> list[int]:
        """Shape of the full tensor, as in safetensors."""
        piece = self.place[0]
        inner = self.tensors.entries[piece.key].shape[len(piece.index) + 1 :]
        return [sum(stop - start for start, stop in self.rows), *inner]

    def __getitem__(self, where: Any) -> torch.Tensor:
        indices = where if isinstance(where, tuple) else (where,)
        shape = self.get_shape()
        wanted = [slice(*index.indices(size)) for index, size in zip(indices, shape, strict=False)]
        wanted += [slice(0, size) for size in shape[len(wanted) :]]
        parts, begin = [], 0
        for piece, (start, stop) in zip(self.place, self.rows, strict=True):
            first, last = max(wanted[0].start, begin), min(wanted[0].stop, begin + stop - start)
            if first < last:
                fixed = tuple(slice(i, i + 1) for i in piece.index)
                rows = slice(start + first - begin, start + last - begin)
                part = self.tensors.read(piece.key, (*fixed, rows, *wanted[1:]))
                parts.append(part.reshape(part.shape[len(fixed) :]))
            begin += stop - start
        return torch.cat(parts) if parts else torch.empty([0, *(w.stop - w.start for w in wanted[1:])])


def write_megatron(config: Any, tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, step: int) -> int:
    """Write tensors with Hugging Face names as a `torch_dist` folder, and verify it bit for bit. Returns the number of tensors.
    CheckpointError for a tensor that has no counterpart in Megatron or differs when read back."""
    writer = TorchDistWriter(folder)
    written: dict[str, int] = {}
    homeless = []
    for name, tensor in tensors:
        found = places(config, name)
        if not found:
            homeless.append(name)
            continue
        begin = 0
        for piece in found[0]:
            start, stop = piece.rows or (0, len(tensor))
            part = tensor[begin : begin + stop - start]
            begin += stop - start
            shape = (*piece.stacked, piece.of or stop, *tensor.shape[1:])
            inner = (0,) * (tensor.dim() - 1)
            values = part.reshape(*(1 for _ in piece.index), *part.shape)
            writer.write(piece.key, shape, (*piece.index, start, *inner), values)
        written[name] = checksum(tensor)
    if homeless:
        raise CheckpointError(
            f"export.format=megatron: no counterpart in Megatron checkpoints is known for {', '.join(homeless[:5])}"
            + (f" and {len(homeless) - 5} more" if len(homeless) > 5 else "")
        )
    writer.close({"iteration": step, "checkpoint_version": 3.0})
    weights = MegatronWeights(folder, config)
    changed = [name for name, value in written.items() if checksum(weights.get(name)[:]) != value]
    if changed:
        raise CheckpointError(
            f"{folder}: verification failed, these tensors differ when read back: {', '.join(changed[:5])}"
        )
    return len(written)


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
