"""Sharded tensors on disk: every rank writes its local shards, and any layout reads the parts it needs.

Format: `<kind>-<rank>.safetensors`. `parts` in the header is JSON with the offset of each shard in its tensor, the shape of
the full tensor and a checksum of the bytes; so the files describe themselves, and no rank holds more than its shards. If each
value stands for a block of consecutive elements, it also has the `sizes` of the shard. Corrupt data is a CheckpointError.
"""

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sft_hydra.errors import CheckpointError
from sft_hydra.parallel.dtensor import local_shard

Where = tuple[slice, ...]

SHOWN = 8  # problems of a checkpoint that does not match; another model would have hundreds


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A rectangular part of one tensor, in memory."""

    values: torch.Tensor
    start: tuple[int, ...]
    whole: tuple[int, ...]  # shape of the full tensor
    sizes: tuple[int, ...] | None = None  # shape of the part, if each of `values` stands for a block of its elements


def shard_record(tensor: torch.Tensor) -> ShardRecord:
    """The local shard of a tensor; shares its memory."""
    values, where = local_shard(tensor)
    return ShardRecord(values, tuple(index.start for index in where), tuple(tensor.shape))


def write_shards(folder: Path, kind: str, rank: int, parts: dict[str, ShardRecord]) -> Path:
    """Write the file of one rank; returns its path."""
    file = folder / f"{kind}-{rank:05d}.safetensors"
    values = {name: part.values.cpu().contiguous() for name, part in parts.items()}
    header = {
        name: {"start": part.start, "whole": part.whole, "crc32": _crc32(values[name])}
        | ({} if part.sizes is None else {"sizes": part.sizes})
        for name, part in parts.items()
    }
    save_file(values, file, metadata={"parts": json.dumps(header)})
    return file


@dataclass(frozen=True, slots=True)
class _File:
    """Location of one part of a tensor: file, slices and checksum."""

    path: Path
    handle: Any
    where: Where
    crc32: int

    def read(self, name: str) -> torch.Tensor:
        values: torch.Tensor = self.handle.get_tensor(name)
        if _crc32(values) != self.crc32:
            raise CheckpointError(f"{self.path}: {name} is corrupt (checksum mismatch)")
        sizes = [place.stop - place.start for place in self.where]
        if values.numel() < math.prod(sizes):
            values = values.repeat_interleave(math.prod(sizes) // values.numel())
        return values.view(sizes)


class ShardFiles:
    """All files of one kind in a folder. CheckpointError if they cannot be read."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, list[_File]] = {}
        paths = sorted(folder.glob(f"{kind}-*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder} has no {kind}-*.safetensors: the checkpoint is incomplete")
        for path in paths:
            file = _open(path)
            try:
                for name, place in json.loads(file.metadata()["parts"]).items():
                    sizes = place.get("sizes", file.get_slice(name).get_shape())
                    where = tuple(slice(start, start + size) for start, size in zip(place["start"], sizes, strict=True))
                    self.shapes[name] = tuple(place["whole"])
                    self._places.setdefault(name, []).append(_File(path, file, where, place["crc32"]))
            except (KeyError, TypeError, ValueError, SafetensorError) as error:
                raise CheckpointError(f"{path} is not a checkpoint file of this version: {error!r}") from error

    def problems(self, wanted: dict[str, tuple[int, ...]], everywhere: Iterable[str]) -> list[str]:
        """Messages why `wanted` (name -> shape) cannot be read; `everywhere`: the names that all ranks together read."""
        where = f"{self.folder}/{self.kind}-*"
        found = [f"{where} lack {name}" for name in wanted if name not in self.shapes]
        found += [
            f"{where} contain {name}, which the model does not have" for name in sorted(self.shapes.keys() - everywhere)
        ]
        for name, shape in wanted.items():
            if name in self.shapes and self.shapes[name] != shape:
                found.append(f"{where}: {name} has shape {self.shapes[name]}, in the model {shape}")
        if len(found) > SHOWN:
            found[SHOWN:] = [
                f"and {len(found) - SHOWN} more: the checkpoint is of another model; set the model=... of its run"
            ]
        return found

    def read_into(self, name: str, tensor: torch.Tensor) -> None:
        """Fill the local shard of a tensor. CheckpointError if elements are missing."""
        target, where = local_shard(tensor)
        self.check_whole(name, target.numel() - self.fill(name, target, where))

    @torch.no_grad()
    def fill(self, name: str, target: torch.Tensor, where: Where) -> int:
        """Fill `target`, the slices `where` of a tensor. Returns the number of elements that were read."""
        filled = 0
        for file in self._places[name]:
            place = file.where
            common = [_overlap(a, b) for a, b in zip(where, place, strict=True)]
            if any(index.start >= index.stop for index in common):
                continue
            values = file.read(name)[_within(common, place)]
            target[_within(common, where)] = values.to(target.device)
            filled += values.numel()
        return filled

    def check_whole(self, name: str, missing: int) -> None:
        """CheckpointError if elements of a tensor are missing."""
        if missing:
            raise CheckpointError(f"{self.folder}: {name}: {missing:,} elements are missing")


def _overlap(a: slice, b: slice) -> slice:
    return slice(max(a.start, b.start), min(a.stop, b.stop))


def _within(common: list[slice], place: Where) -> Where:
    """The slices `common` relative to the start of `place`."""
    return tuple(slice(c.start - p.start, c.stop - p.start) for c, p in zip(common, place, strict=True))


def _crc32(values: torch.Tensor) -> int:
    return zlib.crc32(values.reshape(-1).view(torch.uint8).numpy())


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Delete {path.parent.name} to resume from the previous checkpoint"
        ) from error
