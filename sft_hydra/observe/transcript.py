"""Conversations as text for people, with labels for reasoning, tool calls and results."""

import json
from collections.abc import Iterator, Sequence

from rich.text import Text

from sft_hydra.observe.console import Console
from sft_hydra.records import Message


def as_text(messages: Sequence[Message]) -> str:
    """The messages as plain lines."""
    return "\n".join(label + text for label, text, _ in _lines(messages))


def show(console: Console, messages: Sequence[Message]) -> None:
    """Print the messages with colours."""
    for label, text, style in _lines(messages):
        console.print(Text(label + text, style=style))


def _lines(messages: Sequence[Message]) -> Iterator[tuple[str, str, str]]:
    """(label, text, style) of every part."""
    for message in messages:
        if message["role"] == "tool":
            yield "result: ", message["content"], "yellow"
            continue
        if message.get("reasoning_content"):
            yield "thinks: ", message["reasoning_content"], "dim"
        calls = message.get("tool_calls", [])
        if message["content"] or not calls:
            yield "", message["content"], "green"
        for call in calls:
            function = call["function"]
            yield "calls: ", f"{function['name']} {json.dumps(function['arguments'], ensure_ascii=False)}", "yellow"
