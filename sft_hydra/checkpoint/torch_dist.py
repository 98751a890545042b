"""Reads and writes Megatron-Core's `torch_dist` folders without megatron-core: `.metadata`, `*.distcp`, `common.pt`.

`.metadata` is a pickle with the location of each chunk of each tensor. Unpickling can run any code that a file names, so
only an exact list of names is allowed, and each is replaced by a record without behavior. Chunks are loaded with
`torch.load(weights_only=True)`, and only those that a slice needs.
"""

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sft_hydra.errors import ModelError

Where = tuple[slice, ...]
CACHED_BYTES = 1 << 30
FILE_BYTES = 5 * 10**9
MADE_BY = "sft_hydra.json"  # marks folders that we wrote
BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
CHECKPOINT = "torch.distributed.checkpoint."
RECORDS = {
    *((CHECKPOINT + "metadata", name) for name in ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata")),
    *((CHECKPOINT + "metadata", name) for name in ("ChunkStorageMetadata", "TensorProperties", "MetadataIndex")),
    *((CHECKPOINT + "metadata", name) for name in ("StorageMeta", "_MEM_FORMAT_ENCODING")),
    *((CHECKPOINT + "filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    *((CHECKPOINT + "planner", name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
    (CHECKPOINT + "planner", "BytesIOWriteData"),
    ("torch.serialization", "_get_layout"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}
DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


class _Record:
    """Replaces an object of a pickle: holds its constructor arguments and runs nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        return dict(self.state).get(name)

    def __hash__(self) -> int:
        return id(self)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in RECORDS:
            return type(name, (_Record,), {})
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise ModelError(f"its .metadata names {module}.{name}, which is not on the list of allowed names")

    def persistent_load(self, pid: Any) -> Any:
        raise ModelError("its .metadata refers to objects outside of it")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of a tensor and its bytes in a file."""

    start: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Entry:
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[_Chunk]


class TorchDist:
    """The tensors of one checkpoint folder. ModelError if its metadata cannot be read or points outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = _entries(folder)
        self._cache: OrderedDict[tuple[Path, int], torch.Tensor] = OrderedDict()

    def read(self, key: str, where: Where) -> torch.Tensor:
        """The slices `where` (with explicit ends) of a tensor, from the chunks that they overlap. ModelError if incomplete."""
        entry = self.entries[key]
        out = torch.empty([index.stop - index.start for index in where], dtype=entry.dtype)
        filled = 0
        for chunk in entry.chunks:
            place = tuple(slice(a, a + size) for a, size in zip(chunk.start, chunk.sizes, strict=True))
            common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(where, place, strict=True)]
            if any(index.start >= index.stop for index in common):
                continue
            part = self._load(key, entry, chunk)[_within(common, place)]
            out[_within(common, where)] = part
            filled += part.numel()
        if filled != out.numel():
            raise ModelError(f"{self.folder}: {key}: {out.numel() - filled:,} elements are missing")
        return out

    def _load(self, key: str, entry: _Entry, chunk: _Chunk) -> torch.Tensor:
        name = (chunk.file, chunk.offset)
        if name in self._cache:
            self._cache.move_to_end(name)
            return self._cache[name]
        try:
            with open(chunk.file, "rb") as stream:
                stream.seek(chunk.offset)
                tensor = torch.load(io.BytesIO(stream.read(chunk.length)), map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as problem:
            raise ModelError(f"{chunk.file}: {key} cannot be read ({str(problem).splitlines()[0]})") from None
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != chunk.sizes or tensor.dtype != entry.dtype:
            raise ModelError(f"{chunk.file}: {key} does not match .metadata ({chunk.sizes}, {entry.dtype})")
        self._cache[name] = tensor.detach()
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHED_BYTES:
            self._cache.popitem(last=False)
        return self._cache[name]


def _within(common: list[slice], place: Where) -> Where:
    return tuple(slice(c.start - p.start, c.stop - p.start) for c, p in zip(common, place, strict=True))


def _entries(folder: Path) -> dict[str, _Entry]:
    try:
        with open(folder / ".metadata", "rb") as stream:
            metadata = _Unpickler(stream).load()
        tensors, places = metadata.get("state_dict_metadata"), metadata.get("storage_data")
        stored = {(place.get("fqn"), tuple(place.get("offset") or ())): info for place, info in places.items()}
        return {
            str(key): _entry(folder, str(key), tensor, stored)
            for key, tensor in tensors.items()
            if type(tensor).__name__ == "TensorStorageMetadata"
        }
    except ModelError as problem:
        raise ModelError(*(f"{folder}: {text}" for text in problem.problems)) from None
    except (
        OSError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        EOFError,
        pickle.UnpicklingError,
    ) as problem:
        raise ModelError(f"{folder}/.metadata: not valid for a torch_dist checkpoint ({problem!r})") from None


def _entry(folder: Path, key: str, tensor: _Record, stored: dict[Any, Any]) -> _Entry:
    shape, dtype = tensor.get("size"), tensor.get("properties").state[0]
    chunks = []
    for chunk in tensor.get("chunks"):
        start, sizes = tuple(chunk.get("offsets")), tuple(chunk.get("sizes"))
        info = stored[key, start]
        name, offset, length = str(info.get("relative_path")), info.get("offset"), info.get("length")
        if Path(name).name != name or not name.endswith(".distcp"):
            raise ModelError(f"{key} is in {name!r}, which is not a .distcp file beside .metadata")
        if info.get("transform_descriptors"):
            raise ModelError(f"{key} is stored through {info.get('transform_descriptors')}, which is not supported")
        numbers = (*start, *sizes, *shape, offset, length)
        inside = all(a >= 0 and a + size <= whole for a, size, whole in zip(start, sizes, shape, strict=True))
        if not all(type(number) is int and number >= 0 for number in numbers) or not inside:
            raise ModelError(f"{key}: its chunks do not lie inside the tensor")
        chunks.append(_Chunk(start, sizes, folder / name, offset, length))
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"{key}: unknown type")
    return _Entry(tuple(shape), dtype, chunks)


class TorchDistWriter:
    """Writes chunks one by one, with one chunk at a time in memory; `close` writes the metadata."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, tuple[tuple[int, ...], torch.dtype, list[Any]]] = {}
        self.places: dict[Any, Any] = {}
        self._number = -1
        self._stream: Any = None

    def write(self, key: str, shape: tuple[int, ...], start: tuple[int, ...], values: torch.Tensor) -> None:
        """Write `values` at offset `start` of the tensor `key` with the full shape `shape`."""
        from torch.distributed.checkpoint.filesystem import _StorageInfo
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

        if self._stream is None or self._stream.tell() > FILE_BYTES:
            self._next_file()
        offset = self._stream.tell()
        torch.save(values.detach().cpu().clone(memory_format=torch.contiguous_format), self._stream)
        length = self._stream.tell() - offset
        chunks = self.entries.setdefault(key, (shape, values.dtype, []))[2]
        sizes = torch.Size(values.shape)
        self.places[MetadataIndex(key, torch.Size(start), len(chunks))] = _StorageInfo(
            f"__0_{self._number}.distcp", offset, length
        )
        chunks.append(ChunkStorageMetadata(torch.Size(start), sizes))

    def close(self, common: dict[str, Any]) -> None:
        """Write `.metadata`, and `common` as common.pt."""
        from torch.distributed.checkpoint.metadata import Metadata, TensorProperties, TensorStorageMetadata

        if self._stream is not None:
            self._stream.close()
        tensors = {
            key: TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), chunks)
            for key, (shape, dtype, chunks) in self.entries.items()
        }
        metadata = Metadata(tensors, planner_data={key: (key,) for key in tensors}, storage_data=self.places)
        metadata.mcore_data = {}  # type: ignore[attr-defined]  # megatron-core looks for it
        torch.save(common, self.folder / "common.pt")
        (self.folder / "metadata.json").write_text(json.dumps(BACKEND))
        (self.folder / MADE_BY).write_text("{}\n")
        with open(self.folder / ".metadata", "wb") as stream:
            pickle.dump(metadata, stream)

    def _next_file(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._number += 1
        self._stream = open(self.folder / f"__0_{self._number}.distcp", "wb")  # noqa: SIM115 (closed at the next, or in close)


def full(shape: Iterable[int]) -> Where:
    """Slices of a full tensor of this shape."""
    return tuple(slice(0, size) for size in shape)
