"""Reads small files of earlier processes, which may be damaged by a crash, an editor or a full disk.

Any problem with such a file is a UserError with its path, never a traceback. A missing file is `exists(path)` false; a
dangling link or a folder with that name exists and is an error.

Owner of: a damaged file of a run is named.
"""

import json
import os
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Any

from sft_hydra.errors import ConfigError, UserError

AWAY = "delete it"
FULL = {ENOSPC: "the disk is full", EDQUOT: "the disk quota is used up", EFBIG: "the limit of file sizes is reached"}


def exists(path: Path) -> bool:
    """Whether the path exists; true for a dangling link."""
    return os.path.lexists(path)


def read_text(path: Path, *, error: type[UserError] = ConfigError, fix: str = AWAY) -> str:
    """The text of a UTF-8 file. Raises `error` with the path and `fix`, what the user can do."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as problem:
        raise unreadable(path, problem, error, fix) from None


def read_object(path: Path, *, error: type[UserError] = ConfigError, fix: str = AWAY) -> dict[str, Any]:
    """The JSON object in a file. Raises `error` as read_text does."""
    text = read_text(path, error=error, fix=fix)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise unreadable(path, problem, error, fix) from None
    if not isinstance(found, dict):
        raise unreadable(path, "not a JSON object", error, fix)
    return found


def unreadable(path: Path, problem: object, error: type[UserError] = ConfigError, fix: str = AWAY) -> UserError:
    """The error to raise for a damaged file."""
    return error(f"{path}: cannot be read ({_why(path, problem)}); {fix}")


def unwritable(problem: object) -> str:
    """Why a file could not be written, in brackets, with a hint if the disk is full."""
    code = problem.errno if isinstance(problem, OSError) else None
    for number, words in FULL.items():
        if code == number or f"(os error {number})" in str(problem):  # safetensors has the number in its message
            return f"({words}: {problem}). Is the disk full?"
    return f"({problem})."


def _why(path: Path, problem: object) -> str:
    if isinstance(problem, FileNotFoundError) and path.is_symlink():
        return f"a link to {os.readlink(path)}, which does not exist"
    if isinstance(problem, UnicodeDecodeError):
        return f"not UTF-8 at byte {problem.start}"
    if isinstance(problem, OSError):
        return problem.strerror or str(problem)
    return str(problem) or type(problem).__name__
