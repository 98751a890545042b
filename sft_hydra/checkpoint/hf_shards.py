"""Writes the safetensors files of a Hugging Face folder, with one file at a time in memory."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sft_hydra.config.weight_files import INDEX, SINGLE

SHARD_BYTES = 5 * 10**9
METADATA = {"format": "pt", "made_by": "sft_hydra"}  # in every file that we write; such files may be replaced


def write_tensors(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path) -> int:
    """Write `tensors` to files of at most SHARD_BYTES (a larger tensor gets its own file), with an index for several files.

    Returns the number of tensors.
    """
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    pending_bytes = total_bytes = 0
    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > SHARD_BYTES:
            shards.append(_write(pending, folder / _part(len(shards))))
            pending, pending_bytes = {}, 0
        pending[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    shards.append(_write(pending, folder / _part(len(shards))))
    if len(shards) == 1:
        (folder / _part(0)).rename(folder / SINGLE)
        return len(shards[0])
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        final = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / _part(i)).rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return len(weight_map)


def is_export(folder: Path) -> bool:
    """Whether the weights in a folder were written by `write_tensors`."""
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt") as opened:
                return (opened.metadata() or {}).get("made_by") == METADATA["made_by"]
        except (OSError, SafetensorError):
            return False
    return False


def _part(i: int) -> str:
    return f"part-{i}.safetensors"  # until the number of files is known


def _write(tensors: dict[str, torch.Tensor], file: Path) -> list[str]:
    save_file(tensors, file, metadata=METADATA)
    return list(tensors)
