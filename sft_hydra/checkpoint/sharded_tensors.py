"""Tensors that are spread over ranks, on disk: every rank writes the parts that it holds, any layout reads what it needs.

Format: `<kind>-<rank>.safetensors`. The header's `parts` says, in JSON, where each part begins in its tensor and how large
the whole tensor is, with a checksum of its bytes; so the files of a folder describe themselves, and no rank ever holds more
than its part. Where each value stands for a block of consecutive numbers, it says the part's `sizes` too. What is read is
what was written, or CheckpointError.
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

SHOWN = 8  # problems of a checkpoint that does not fit; one of another model has hundreds


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """Rows and columns of one tensor, in memory."""

    values: torch.Tensor
    start: tuple[int, ...]
    whole: tuple[int, ...]  # shape of the tensor that it is a part of
    sizes: tuple[int, ...] | None = None  # of the part, where each of `values` stands for a block of its numbers


def shard_record(tensor: torch.Tensor) -> ShardRecord:
    """What this rank holds of a tensor; shares its memory."""
    values, where = local_shard(tensor)
    return ShardRecord(values, tuple(index.start for index in where), tuple(tensor.shape))


def write_shards(folder: Path, kind: str, rank: int, parts: dict[str, ShardRecord]) -> Path:
    """Write the file of one rank."""
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
    """Where one part of a tensor is: in which file, which rows and columns, with which checksum."""

    path: Path
    handle: Any
    where: Where
    crc32: int

    def read(self, name: str) -> torch.Tensor:
        values: torch.Tensor = self.handle.get_tensor(name)
        if _crc32(values) != self.crc32:
            raise CheckpointError(f"{self.path}: {name} is not what was written: its checksum differs")
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
            raise CheckpointError(f"{folder} has no {kind}-*.safetensors: it is not what was saved")
        for path in paths:
            file = _open(path)
            try:
                for name, place in json.loads(file.metadata()["parts"]).items():
                    sizes = place.get("sizes", file.get_slice(name).get_shape())
                    where = tuple(slice(start, start + size) for start, size in zip(place["start"], sizes, strict=True))
                    self.shapes[name] = tuple(place["whole"])
                    self._places.setdefault(name, []).append(_File(path, file, where, place["crc32"]))
            except (KeyError, TypeError, ValueError, SafetensorError) as error:
                raise CheckpointError(f"{path} is no part of a checkpoint of this version: {error!r}") from error

    def problems(self, wanted: dict[str, tuple[int, ...]], everywhere: Iterable[str]) -> list[str]:
        """What keeps `wanted`, names and shapes, from being read; `everywhere`, the names that all ranks together want."""
        where = f"{self.folder}/{self.kind}-*"
        found = [f"{where} lack {name}" for name in wanted if name not in self.shapes]
        found += [f"{where} have {name}, which the model does not" for name in sorted(self.shapes.keys() - everywhere)]
        for name, shape in wanted.items():
            if name in self.shapes and self.shapes[name] != shape:
                found.append(f"{where}: {name} is {self.shapes[name]}, the model's is {shape}")
        if len(found) > SHOWN:
            found[SHOWN:] = [
                f"and {len(found) - SHOWN} more: it is a checkpoint of another model; choose the model=... of its run"
            ]
        return found

    def read_into(self, name: str, tensor: torch.Tensor) -> None:
        """Fill what this rank holds of a tensor."""
        target, where = local_shard(tensor)
        self.check_whole(name, target.numel() - self.fill(name, target, where))

    @torch.no_grad()
    def fill(self, name: str, target: torch.Tensor, where: Where) -> int:
        """Fill `target`, the rows and columns `where` of a tensor. Returns how many of its numbers there are."""
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
        if missing:
            raise CheckpointError(f"{self.folder}: {name} is not complete: {missing:,} of its numbers are missing")


def _overlap(a: slice, b: slice) -> slice:
    return slice(max(a.start, b.start), min(a.stop, b.stop))


def _within(common: list[slice], place: Where) -> Where:
    """`common`, counted from the start of `place`."""
    return tuple(slice(c.start - p.start, c.stop - p.start) for c, p in zip(common, place, strict=True))


def _crc32(values: torch.Tensor) -> int:
    return zlib.crc32(values.reshape(-1).view(torch.uint8).numpy())


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Without the folder {path.parent.name} the same command goes on from the checkpoint "
            "before it"
        ) from error
