"""Records in `state.json` what a checkpoint was trained from: settings, packed set and initial weights. A resumed run must have
the same. Torch-free.

Contents are compared, not paths: other data or other weights under the same name make another run.

Owner of: a run resumes from the data, weights and settings it was made from.
"""

import hashlib
from pathlib import Path
from typing import Any

from sft_hydra.config.resume_compat import config_digest
from sft_hydra.data.shard_file import checksum
from sft_hydra.data.shards import PackedSet
from sft_hydra.errors import CheckpointError, ModelError
from sft_hydra.files import unreadable
from sft_hydra.paths import find_checkpoint, read_progress

ALL_BYTES = 2 << 30  # weights up to this size are hashed completely
STRIDE, SAMPLE = 4 << 20, 64 << 10  # larger ones: SAMPLE bytes of every STRIDE bytes of each file
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
    """CheckpointError, with both keys, if the checkpoint was trained from other data or weights."""
    there = read_progress(checkpoint)
    problems = [
        f"{checkpoint}: {what} changed from {there[key]} to {origin[key]}; restore the original, or choose another "
        "name=... for a new run"
        for key, what in CHANGED.items()
        if there.get(key) not in (None, origin[key])
    ]
    if problems:
        raise CheckpointError(*problems)


def data_key(packed: PackedSet) -> str:
    """The content key of a packed set; for one packed by another tool, a checksum of its files."""
    if (key := packed.metadata.get("content_key")) is not None:
        return str(key)
    files = "".join(checksum(packed.folder / shard["file"]) for shard in packed.metadata["shards"])
    return hashlib.sha256(files.encode()).hexdigest()[:16]


def weights_key(folder: Path) -> str:
    """A checksum of a model's config, index and weights, or of the weights in a checkpoint. Weights beyond ALL_BYTES are
    sampled evenly over every file."""
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
        raise unreadable(folder, problem, ModelError, "choose another model.path") from None
    return digest.hexdigest()[:16]
