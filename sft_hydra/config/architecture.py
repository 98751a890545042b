"""What a model looks like, as the fields of its config.json: read from the model's own files, else from the config's hints.

Torch-free, and never over the network: a hub id is looked up in the local cache of huggingface_hub.
"""

import json
from pathlib import Path
from typing import Any

from sft_hydra.config.schema import SftConfig
from sft_hydra.errors import ModelError


def read_architecture(cfg: SftConfig) -> dict[str, Any]:
    """Fields of config.json; empty if neither the files are at hand nor hints are given.

    Raises ModelError if the config.json that is there cannot be read.
    """
    file = config_file(cfg.model.path, cfg.model.revision)
    if file is None:
        return dict(cfg.model.architecture)
    try:
        fields = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{file}: not a readable config.json ({error})") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ModelError(f"{file}: has no model_type, so it describes no model")
    return fields


def config_file(path: str | None, revision: str | None = None) -> Path | None:
    """config.json of a folder or of a hub id in the local cache, if it is there."""
    if path is None:
        return None
    local = Path(path).expanduser()
    if local.is_dir():
        file = local / "config.json"
        return file if file.is_file() else None
    if is_hub_id(path):
        from huggingface_hub import try_to_load_from_cache  # only here: a tenth of a second that most commands save

        cached = try_to_load_from_cache(path, "config.json", revision=revision)
        return Path(cached) if isinstance(cached, str) else None
    return None


def is_hub_id(path: str) -> bool:
    """`owner/name`, and not the beginning of a local path."""
    owner, slash, name = path.partition("/")
    return (
        bool(slash and owner and name) and "/" not in name and owner not in (".", "..", "~") and not Path(path).exists()
    )
