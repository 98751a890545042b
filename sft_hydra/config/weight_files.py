"""Checks the weight files of a Hugging Face folder without torch: the index and the header of each safetensors file. A folder
that cannot be loaded is thus reported before data is prepared.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MOST_HEADER = 100_000_000  # bytes; the format's own limit
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
EMBEDDINGS = ("embed_tokens.weight", "backbone.embeddings.weight", "wte.weight", "word_embeddings.weight")
SHOWN = 5  # problems of one kind


def weight_problems(folder: Path, architecture: dict[str, Any]) -> Iterator[str]:
    """Messages why the weights in `folder` cannot be loaded; none for a folder without weights (see `has_weights`)."""
    if (folder / INDEX).is_file():
        files = yield from _indexed(folder)
    elif (folder / SINGLE).is_file():
        files = {folder / SINGLE: None}
    else:
        yield from _without_index(folder)
        return
    shapes: dict[str, list[int]] = {}
    found: list[str] = []
    for file, wanted in files.items():
        try:
            header = read_header(file)
        except ValueError as problem:
            found.append(f"{file}: {problem}")
            continue
        shapes |= {name: entry["shape"] for name, entry in header.items()}
        lacking = sorted((wanted or set()) - header.keys())
        if lacking:
            found.append(f"{file}: does not contain {', '.join(lacking[:SHOWN])}, which {INDEX} lists for it")
    yield from _few(found)
    yield from _vocabulary(folder, shapes, architecture)


def has_weights(folder: Path) -> bool:
    """Whether there is any weight file, readable or not."""
    return any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", INDEX, *PICKLES))


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensor -> dtype, shape and data_offsets of a safetensors file. ValueError if it is not one, or incomplete."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MOST_HEADER, size - 8):
                raise ValueError("is not a safetensors file, or is truncated")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise ValueError("is not a safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("is not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    try:
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        assert all(isinstance(entry["shape"], list) for entry in header.values())
    except (TypeError, KeyError, IndexError, ValueError, AssertionError):
        raise ValueError("is not a safetensors file: its header does not describe tensors") from None
    if size != 8 + length + end:
        raise ValueError(f"has {size:,} bytes instead of {8 + length + end:,} as in its header; copy it again")
    return header


def _indexed(folder: Path) -> Any:
    """Yields problems of the index; returns file -> names that must be in it."""
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        items = [(str(name), str(file)) for name, file in weight_map.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{folder / INDEX}: not a readable index of tensors ({error!r})"
        return {}
    files: dict[Path, set[str]] = {}
    outside = sorted({file for _, file in items if Path(file).name != file})
    yield from _few([f"{folder / INDEX} names {file}, which is not a file in the same folder" for file in outside])
    for name, file in items:
        if file not in outside:
            files.setdefault(folder / file, set()).add(name)
    absent = [file for file in files if not file.is_file()]
    yield from _few([f"{file}, named in {INDEX}, does not exist" for file in absent])
    return {file: names for file, names in files.items() if file not in absent}


def _without_index(folder: Path) -> Iterator[str]:
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    adapters = [name for name in shards if name.startswith("adapter_")]
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if adapters:
        yield (
            f"{folder} holds only a LoRA adapter ({adapters[0]}); set model.path to its base model or to a merged model"
        )
    elif shards:
        yield (
            f"{folder} has {len(shards)} safetensors files ({shards[0]}, ...) but no {INDEX}, which maps tensors to "
            f"files, and no {SINGLE}; copy the index too"
        )
    elif pickles:
        yield (
            f"{folder} has weights as pickles ({pickles[0]}); only safetensors are supported. Convert them: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained('<new folder>') with transformers"
        )


def _vocabulary(folder: Path, shapes: dict[str, list[int]], architecture: dict[str, Any]) -> Iterator[str]:
    size = architecture.get("vocab_size")
    for name, shape in shapes.items():
        if name.endswith(EMBEDDINGS) and "position" not in name and isinstance(size, int) and len(shape) == 2:
            if shape[0] != size:
                yield (
                    f"{folder}: vocab_size={size:,} in config.json, but {name} has {shape[0]:,} rows; use the config.json "
                    "of these weights (it may predate a resized vocabulary)"
                )
            return


def _few(problems: list[str]) -> Iterator[str]:
    yield from problems[:SHOWN]
    if len(problems) > SHOWN:
        yield f"... and {len(problems) - SHOWN} more like the last"
