"""What a checkpoint was made from: the settings, the packed set and the weights it began with. Kept in `state.json`; a run that
goes on must have the same. Torch-free.

Owns that contents are compared, not paths: another data file or other weights under the same name are another run.

Owner of: a run resumes from the data, weights and settings it was made from.
"""

import hashlib
from pathlib import Path
from typing import Any

from sft_hydra.config.resume_compat import config_digest
from sft_hydra.data.shards import PackedSet, checksum
from sft_hydra.errors import CheckpointError, ModelError
from sft_hydra.files import unreadable
from sft_hydra.paths import find_checkpoint, read_progress

ALL_BYTES = 2 << 30  # of a model's weights: up to here all of them are read
STRIDE, SAMPLE = 4 << 20, 64 << 10  # of larger ones, so much of every so many bytes of each file
CHANGED = {"data": "the packed set (content key)", "base": "the weights that training starts from (checksum)"}


def origin_of(settings: dict[str, Any], packed: PackedSet, base: Path | None) -> dict[str, Any]:
    """The origin that a checkpoint of this run records. `settings`: the fixed settings of the run
    (config/resume_compat.py); `base`: the folder of `model.path`."""
    folders = [base] if base is not None else []
    folders += [find_checkpoint(settings["checkpoint.load"])] if settings.get("checkpoint.load") else []
    return {
        "config": {"digest": config_digest(settings), "settings": settings},
        "data": data_key(packed),
        "base": "+".join(weights_key(folder) for folder in folders) or f"random start, seed {settings['seed']}",
    }


def check_origin(checkpoint: Path, origin: dict[str, Any]) -> None:
    """CheckpointError, with both keys, unless the checkpoint was made from the same contents."""
    there = read_progress(checkpoint)
    problems = [
        f"{checkpoint}: {what} was {there[key]} and is {origin[key]} now, so this would be another run; choose another name=..., "
        "or put back what it was made from"
        for key, what in CHANGED.items()
        if there.get(key) not in (None, origin[key])
    ]
    if problems:
        raise CheckpointError(*problems)


def data_key(packed: PackedSet) -> str:
    """The content key of a packed set; of one that another tool packed, a checksum of its files."""
    if (key := packed.metadata.get("content_key")) is not None:
        return str(key)
    files = "".join(checksum(packed.folder / shard["file"]) for shard in packed.metadata["shards"])
    return hashlib.sha256(files.encode()).hexdigest()[:16]


def weights_key(folder: Path) -> str:
    """A checksum of a model's config, index and weights, or of the weights in a checkpoint. Of weights beyond ALL_BYTES, samples
    spread over every file."""
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("optimizer-"))
    files += [file for name in ("config.json", "model.safetensors.index.json") if (file := folder / name).is_file()]
    digest = hashlib.sha256()
    try:
        whole = sum(file.stat().st_size for file in files) <= ALL_BYTES
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with open(file, "rb", buffering=0) as stream:
                for start in range(0, size, STRIDE):
                    stream.seek(start)
                    digest.update(stream.read(STRIDE if whole else SAMPLE))
    except OSError as problem:
        raise unreadable(folder, problem, ModelError, "give another model.path") from None
    return digest.hexdigest()[:16]
