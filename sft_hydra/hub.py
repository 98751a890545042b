"""Files from a local folder or the Hugging Face hub."""

import os
import re
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from sft_hydra.errors import UserError


def folder_of(key: str, path: str, patterns: list[str], *, revision: str | None, error: type[UserError]) -> Path:
    """The folder `path`, or a local copy of the files of the hub id `path` that match `patterns`, downloaded if necessary.

    `key`: the config key, for messages. Raises `error` if neither exists, with the fix.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise error(f"{key}={path}: no such folder (and not a hub id of the form owner/name)")
    reach_hub()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except Exception as problem:  # network, permission, unknown id: the same message for all
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__).strip()
        raise error(
            f"{key}={path}: neither a folder nor available on the hub ({reason}). Without a network, set a folder with its "
            f"files: {key}=<folder>; a gated or private repository needs HF_TOKEN in the environment"
        ) from problem


@cache
def reach_hub() -> bool:
    """Whether the hub's host name resolves, checked once per process. If not, the hub libraries use only their caches from then
    on: without a network they would retry each request for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True  # the proxy resolves it
    endpoint = urlsplit(constants.ENDPOINT)
    try:
        socket.getaddrinfo(endpoint.hostname, endpoint.port or endpoint.scheme)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        return False
    return True
