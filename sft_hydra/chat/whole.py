"""Checks that a rendered text contains all of a row: `lost(texts, text)` names the first missing part; `message_texts` and
`tool_texts` list the required parts.

A template may trim, escape and reorder texts, but not leave them out.
"""

import html
import json
from collections.abc import Iterable, Iterator
from typing import Any

from sft_hydra.records import Conversation, Message

LONG = 24  # characters; a text of this length does not occur elsewhere by chance
HEAD = 48  # characters that are searched first of a longer text
Named = tuple[str, str]  # (name for messages, text that must occur)


def message_texts(message: Message, reasoning: bool) -> Iterator[Named]:
    """Content and calls of a message, and with `reasoning` its reasoning."""
    role = message["role"]
    thought = message.get("reasoning_content")
    if reasoning and thought:
        yield "reasoning", thought
    content = message.get("content")
    if isinstance(content, str) and content:
        beside = " beside a tool call" if "tool_calls" in message else ""
        yield f"content of a message of the {role}{beside}", content
    yield from call_texts(message.get("tool_calls") or ())


def lost_of_messages(messages: list[Message], turns: list[int], modes: list[bool], text: str) -> str | None:
    """Name of the first part of the messages that is missing from `text`; None if nothing is. Assistant messages count only if
    they are in `turns`."""
    position = 0
    supervised = frozenset(turns)
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and index not in supervised:
            continue
        for wanted in wanted_texts(message, modes[index]):
            place = find(wanted, text, position)
            if place >= 0:
                position = place + len(wanted)
            elif wanted not in text:  # missing, or changed: the slow search knows
                if (name := lost(message_texts(message, modes[index]), text)) is not None:
                    return name
                break
    return None


def find(wanted: str, text: str, position: int) -> int:
    """`text.find(wanted, position)`, faster: that prepares a table for long texts: mostly the first place of the first words is right."""
    if len(wanted) > HEAD:
        place = text.find(wanted[:HEAD], position)
        if place < 0 or text.startswith(wanted, place):
            return place
    return text.find(wanted, position)


def wanted_texts(message: Message, reasoning: bool) -> list[str]:
    """The texts of `message_texts`, without names."""
    found: list[str] = []
    if reasoning and (thought := message.get("reasoning_content")):
        found.append(thought)
    content = message.get("content")
    if content and content.__class__ is str:
        found.append(content)
    if "tool_calls" in message:
        for call in message["tool_calls"]:
            found.append(call["function"]["name"])
            _add_leaves(call["function"]["arguments"], found)
    return found


def are_unique(messages: list[Message], conversation: Conversation, source: str) -> bool:
    """Whether all texts of these messages are long and occur nowhere else, in the row or in the template's source, so that
    finding them proves that they were printed. False for messages with calls, whose names also occur in tools."""
    if any("tool_calls" in message for message in messages):
        return False
    texts = [text for message in messages for _, text in message_texts(message, True)]
    if any(len(text) < LONG for text in texts):
        return False
    everything = "\0".join([*_printable(conversation), source])
    return all(everything.count(text.strip()) == 1 for text in texts)


def _printable(conversation: Conversation) -> Iterator[str]:
    """All texts of a row, and its calls and tools in the forms that templates print them."""
    for message in conversation.messages:
        yield from (text for _, text in message_texts(message, True))
        yield from (text for key in ("name", "tool_call_id") if isinstance(text := message.get(key), str))
    calls = [call["function"]["arguments"] for m in conversation.messages for call in m.get("tool_calls") or ()]
    for value in (*calls, conversation.tools, conversation.template_kwargs):
        if value:
            yield from _leaves(value)
            yield str(value)
            yield json.dumps(value, ensure_ascii=False, default=str)


def call_texts(calls: Iterable[dict[str, Any]]) -> Iterator[Named]:
    """Names and arguments of tool calls."""
    for call in calls:
        function = call["function"]
        yield "name of a tool call", function["name"]
        for text in _leaves(function["arguments"]):
            yield "arguments of a tool call", text


def tool_texts(tools: Iterable[Any] | None) -> Iterator[Named]:
    """Names and parameters of tool definitions."""
    for tool in tools or ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            continue
        if isinstance(function.get("name"), str):  # some templates print signatures without descriptions
            yield "name of a tool", function["name"]
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        for parameter in properties if isinstance(properties, dict) else ():
            yield "parameters of a tool", parameter


def lost(texts: Iterable[Named], text: str) -> str | None:
    """Name of the first of `texts` that `text` does not contain; None if it contains all. Searches in order first."""
    position = 0
    for name, wanted in texts:
        place = text.find(wanted, position)
        if place >= 0:
            position = place + len(wanted)
        elif wanted not in text and not _stands_changed(wanted, text):
            return name
    return None


def _stands_changed(wanted: str, text: str) -> bool:
    """Whether `text` contains `wanted` trimmed, escaped, or with other white space."""
    stripped = wanted.strip()
    if not stripped:
        return True
    for form in (stripped, json.dumps(stripped, ensure_ascii=False)[1:-1], json.dumps(stripped)[1:-1]):
        if form in text:
            return True
    if html.escape(stripped) in text or html.escape(json.dumps(stripped, ensure_ascii=False)[1:-1]) in text:
        return True
    if repr(stripped)[1:-1] in text:
        return True
    return "".join(stripped.split()) in "".join(text.split())


def _leaves(value: Any) -> list[str]:
    """The keys, texts and numbers of a JSON value."""
    found: list[str] = []
    _add_leaves(value, found)
    return found


def _add_leaves(value: Any, found: list[str]) -> None:
    kind = value.__class__
    if kind is str:
        if value:
            found.append(value)
    elif kind is dict:
        for key, item in value.items():
            found.append(str(key))
            _add_leaves(item, found)
    elif kind is list:
        for item in value:
            _add_leaves(item, found)
    elif kind is int or kind is float:  # not bool
        found.append(str(value))
