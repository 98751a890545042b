"""Files that lie in a folder or on the Hugging Face hub. Owns how they are fetched, and what is said when they cannot be."""

import re
from pathlib import Path

from sft_hydra.errors import UserError


def folder_of(key: str, path: str, patterns: list[str], *, revision: str | None, error: type[UserError]) -> Path:
    """The folder `path`, else the local copy of the files of that hub id that match `patterns`, downloaded if need be.

    `key` is the config key that named it. Raises `error` with the way out.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise error(f"{key}={path}: no such folder (and not a hub id of the form owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except Exception as problem:  # network, permission, unknown id: all told the same way
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__).strip()
        raise error(
            f"{key}={path}: neither a folder nor to be had from the hub ({reason}). Without a network, give a folder that "
            f"holds its files: {key}=<folder>; a gated or private one needs HF_TOKEN in the environment"
        ) from problem
