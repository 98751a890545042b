"""Prompts and conversations from users' files, and tool definitions.

Invariant: only calls of the bundled tools are executed; calls of users' tools are never executed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.data_prep.sources import MalformedRow, Source, files_of, read_rows
from sft_hydra.demo import calculator
from sft_hydra.errors import DataError, RowError
from sft_hydra.records import Conversation
from sft_hydra.schema.data import SourceConfig

DEMO = "demo"

Execute = Callable[[str, Any], str]


@dataclass(frozen=True, slots=True)
class Tools:
    """Tool definitions, and the function that executes calls."""

    definitions: list[dict[str, Any]] | None = None
    execute: Execute | None = None
    """None: calls are shown, not executed."""


def load_tools(path: str | None) -> Tools:
    """The bundled tools (`demo`), or a JSON file with a list of definitions; None: no tools. DataError for an invalid file."""
    if path is None:
        return Tools()
    if path == DEMO:
        return Tools(list(calculator.TOOLS.values()), calculator.execute)
    try:
        definitions = orjson.loads(Path(path).expanduser().read_bytes())
    except (OSError, ValueError) as problem:
        raise DataError(f"tools={path}: cannot be read as JSON ({problem})") from None
    if not isinstance(definitions, list) or not all(isinstance(tool, dict) for tool in definitions):
        raise DataError(f"tools={path}: must be a JSON list of tool definitions")
    return Tools(definitions)


def read_conversations(path: str, key: str) -> Iterator[Conversation]:
    """All conversations of a data file. `key` is the config key for messages; DataError for an invalid row."""
    for origin, row in _rows(path, key):
        yield _conversation(row, origin, key)


def read_prompts(path: str) -> Iterator[Conversation]:
    """Conversations to be answered: rows with a `prompt`, or with `messages` (and `tools`) without their last answer; a file
    without .json in its name has one prompt per line. DataError names the file and row."""
    key = "generate.prompt_file"
    if not Path(path).is_file():
        raise DataError(f"{key}={path}: no such file")
    if ".json" not in Path(path).name:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield Conversation([{"role": "user", "content": line.strip()}], None, path, key)
        return
    for origin, row in _rows(path, key):
        if isinstance(row, dict) and isinstance(row.get("prompt"), str):
            row = {**row, "messages": [{"role": "user", "content": row["prompt"]}]}
        conversation = _conversation(row, origin, key)
        while conversation.messages and conversation.messages[-1]["role"] == "assistant":
            conversation.messages.pop()
        if not conversation.messages:
            raise DataError(f"{key}: {origin}: all messages are answers of the assistant; add a user message")
        yield conversation


def _rows(path: str, key: str) -> Iterator[tuple[str, Any]]:
    source = Source(key, SourceConfig(path=path))
    for file in files_of(source):
        for number, row in read_rows(file, source, 0, None):
            origin = f"{file.path}:{number + 1}"
            if isinstance(row, MalformedRow):
                raise DataError(f"{key}: {origin}: not JSON ({row.problem})")
            yield origin, row


def _conversation(row: Any, origin: str, key: str) -> Conversation:
    try:
        return to_conversation(row, SourceConfig(format="openai"), key, origin)
    except RowError as problem:
        raise DataError(f"{key}: {origin}: {problem}") from None
