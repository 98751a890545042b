"""Loads the weights of a Hugging Face folder or a Megatron checkpoint into a sharded model, tensor by tensor.

Every rank reads only the rows of its shard, and a weight that it quantizes in full, one at a time: no rank ever holds the full
model in memory.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sft_hydra.chat.tokenizer import NewTokens
from sft_hydra.checkpoint.megatron import MegatronWeights
from sft_hydra.checkpoint.new_rows import start_new_rows
from sft_hydra.config.weight_files import INDEX, SINGLE
from sft_hydra.errors import ModelError
from sft_hydra.hub import folder_of
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import is_adapter
from sft_hydra.models.megatron_names import mtp_names
from sft_hydra.models.state_dict_map import carried, from_disk, hf_name, shape_on_disk, stored
from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.parallel.dtensor import local_shard
from sft_hydra.planning.megatron_checkpoint import torch_dist_folder

FLOATING = ("F64", "F32", "F16", "BF16")

ROWS = 8192  # rows compared at once


def local_folder(path: str, revision: str | None = None) -> Path:
    """The folder of a model: `path` itself, or the cached download of that hub id."""
    return folder_of("model.path", path, ["*.safetensors", "*.json"], revision=revision, error=ModelError)


@torch.no_grad()
def load_weights(
    model: DecoderModel, path: str, revision: str | None = None, new_tokens: NewTokens | None = None
) -> None:
    """Load a model from safetensors or a torch_dist checkpoint; with `new_tokens` its embedding and head may have more rows than
    the files. ModelError lists all tensors that are missing, unexpected or of another shape."""
    folder = local_folder(path, revision)
    base = {name: tensor for name, tensor in model.state_dict().items() if not is_adapter(name)}
    shapes = {name: model.quantized[name].shape if name in model.quantized else t.shape for name, t in base.items()}
    targets = {name: (tensor, stored(model.config, name, shapes[name])) for name, tensor in base.items()}
    own = {name for _, place in targets.values() for name in place.names}
    needed = {name for names in all_gather_objects(own, model.mesh) for name in names}
    reader: _Reader | MegatronWeights
    if checkpoint := torch_dist_folder(folder):
        reader = MegatronWeights(checkpoint, model.config)
        present, left_over = reader.present(needed), reader.left_over({*needed, *mtp_names(model.config)})
    else:
        files = _tensor_files(folder)
        prefix = "" if any(name.startswith(model.prefix) for name in files) else model.prefix
        files = {prefix + name: file for name, file in files.items()}
        reader, present = _Reader(files, prefix), set(files)
        left_over = sorted(name for name in present - needed if not model.ignores(name))
    problems = [f"{folder}: {name} is missing" for name in sorted(needed - present)]
    problems += [f"{folder}: {name} is not part of this model" for name in left_over]
    if problems:
        raise ModelError(*_shown(problems))
    if isinstance(reader, _Reader):
        _check_kinds(model, reader, {name: place.names for name, (_, place) in targets.items()}, folder)
        _check_tied_head(model, present, reader, folder)
    broken = []
    for name, (tensor, place) in targets.items():
        there = shape_on_disk(place, reader.get)
        is_table = new_tokens is not None and name in (model.embedding_name, model.head_name)
        smaller = is_table and there[0] < tensor.shape[0] and there[1:] == tensor.shape[1:]
        if there != tuple(shapes[name]) and not smaller:
            raise ModelError(f"{folder}: {name} has shape {there}, but {tuple(shapes[name])} by config.json")
        part, where = local_shard(tensor)
        if not part.numel():
            continue
        if quantized := model.quantized.get(name):
            part = from_disk(place, reader.get, quantized.needed(where))
            quantized.fill(tensor, part)
        elif smaller:  # the rows that there are; the others below
            where = (slice(where[0].start, max(where[0].start, min(where[0].stop, there[0]))), *where[1:])
            part[: where[0].stop - where[0].start] = from_disk(place, reader.get, where).to(part)
        else:
            part.copy_(from_disk(place, reader.get, where))
        if is_table and new_tokens is not None:
            start_new_rows(tensor, reader.get(place.names[0]), new_tokens)
        broken += [] if is_finite(part) else [name]
    if everywhere := sorted({name for names in all_gather_objects(broken, model.mesh) for name in names}):
        raise ModelError(*_shown([f"{folder}: {name} has non-finite values (NaN or infinite)" for name in everywhere]))


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, without extra memory; true for integers."""
    if not values.is_floating_point() or not values.numel():
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(values))


def _check_kinds(model: DecoderModel, reader: "_Reader", names: dict[str, Any], folder: Path) -> None:
    """ModelError if weights on disk are integers or 8-bit floats, as in quantized models, but the model uses them directly."""
    floating = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    floating |= model.quantized.keys()
    own = [(on_disk, reader.get(on_disk).get_dtype()) for name in names if name in floating for on_disk in names[name]]
    odd = {(name, kind) for name, kind in own if kind not in FLOATING}
    if everywhere := sorted({pair for pairs in all_gather_objects(sorted(odd), model.mesh) for pair in pairs}):
        raise ModelError(
            *_shown(
                [
                    f"{folder}: {name} is {kind} on disk, not a floating-point weight ({', '.join(FLOATING)})"
                    for name, kind in everywhere
                ]
            ),
            "quantized weights are not supported; set model.path to the original model",
        )


def _shown(problems: list[str]) -> list[str]:
    return [*problems[:20], *([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])]


def _check_tied_head(model: DecoderModel, present: set[str], reader: "_Reader", folder: Path) -> None:
    """ModelError if the files contain an LM head that differs from the embedding although config.json ties them."""
    head, embedding = model.tied_head, hf_name(model.config, model.embedding_name)
    if head not in present or embedding not in present:
        return
    values, table = reader.get(head), reader.get(embedding)
    rows = range(0, table.get_shape()[0], ROWS)
    same = values.get_shape() == table.get_shape() and all(
        torch.equal(values[row : row + ROWS].float(), table[row : row + ROWS].float()) for row in rows
    )
    if not same:
        raise ModelError(
            f"{folder}: {head} differs from {embedding}, but config.json has tie_word_embeddings=true, so these values would "
            'be ignored. If they belong to the model, set "tie_word_embeddings": false in config.json; if not, remove the '
            "tensor from the files"
        )


def carried_tensors(config: Any, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a model's folder that are not trained but that an export must contain."""
    reader: _Reader | MegatronWeights
    if checkpoint := torch_dist_folder(folder):
        reader = MegatronWeights(checkpoint, config)
        names = sorted(reader.present(mtp_names(config)))
    else:
        reader = _Reader(_tensor_files(folder))
        names = [name for name in reader.files if carried(config, name)]
    yield from ((name, reader.get(name)[:]) for name in names)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    if (folder / INDEX).is_file():
        weight_map = _weight_map(folder / INDEX)
        absent = sorted({file for file in weight_map.values() if not (folder / file).is_file()})
        if absent:
            raise ModelError(*(f"{folder / file}, named in {INDEX}, does not exist" for file in absent))
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / SINGLE).is_file():
        with _open(folder / SINGLE) as file:
            return dict.fromkeys(file.keys(), folder / SINGLE)
    raise ModelError(f"{folder} has no {SINGLE} and no {INDEX}: only safetensors are supported (not pickles)")


class _Reader:
    """Open safetensors files by tensor name. Names begin with `prefix`, which the files do not have."""

    def __init__(self, files: dict[str, Path], prefix: str = "") -> None:
        self.files, self.prefix = files, prefix
        self.handles: dict[Path, Any] = {}

    def get(self, name: str) -> Any:
        """A lazy slice of the tensor with this name."""
        file = self.files[name]
        if file not in self.handles:
            self.handles[file] = _open(file)
        try:
            return self.handles[file].get_slice(name.removeprefix(self.prefix))
        except SafetensorError as error:
            raise ModelError(f"{file}: {name}, which the index lists for it, cannot be read: {error}") from error


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file, from an index. ModelError for files outside its folder."""
    try:
        found = dict(json.loads(index.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index}: not a readable index of tensors ({error!r})") from error
    outside = sorted({str(file) for file in found.values() if not isinstance(file, str) or Path(file).name != file})
    if outside:
        raise ModelError(*(f"{index} names {file}, which is not a file in the same folder" for file in outside))
    return found


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read as safetensors: {error}") from error
