"""Adapts messages to what a template reads: contents as parts, arguments as text, reasoning under the template's key.

Invariant: the input messages are not modified; messages that need no change are returned as they are.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.records import Message

LONG_ID = re.compile("[A-Za-z0-9]{9}")


def format_messages(messages: Sequence[Message], traits: TemplateTraits) -> list[Message]:
    """The messages of a Conversation in the form that this template reads. A new list; unchanged messages are shared."""
    messages = [_with_empty_reasoning(message, traits) for message in messages]
    if not traits.reshapes:
        return messages
    shaped = [_shape(message, traits) for message in messages]
    return _with_ids(shaped, traits.long_ids) if traits.needs_ids else shaped


def _shape(message: Message, traits: TemplateTraits) -> Message:
    if traits.developer_as_system and message["role"] == "developer":
        message = {**message, "role": "system"}
    if message["role"] == "assistant":
        message = _shape_reasoning(message, traits)
        if "tool_calls" in message:
            if traits.text_arguments:
                message = {**message, "tool_calls": [_with_text_arguments(call) for call in message["tool_calls"]]}
            if traits.empty_as_null and not message["content"]:
                message = {**message, "content": None}
    if traits.content_parts and isinstance(message.get("content"), str):
        message = {**message, "content": [{"type": "text", "text": message["content"]}]}
    return message


def _shape_reasoning(message: Message, traits: TemplateTraits) -> Message:
    reasoning = message.get("reasoning_content")
    name = traits.call_reasoning_field if "tool_calls" in message else traits.reasoning_field
    if reasoning is None or name == "reasoning_content" or traits.opens_reasoning:
        return message
    message = {key: value for key, value in message.items() if key != "reasoning_content"}
    if not reasoning:
        return message
    if not name:  # reasoning is inline, or not rendered at all
        opening = "" if traits.opens_inline else "<think>\n"
        return {**message, "content": f"{opening}{reasoning}\n</think>\n\n{message.get('content', '')}"}
    return {**message, name: reasoning}


def _with_empty_reasoning(message: Message, traits: TemplateTraits) -> Message:
    """Set empty reasoning for an answer that quotes `</think>`, so that templates with a reasoning field do not split its
    content."""
    if message["role"] != "assistant" or "</think>" not in (message.get("content") or ""):
        return message
    if traits.reasoning_field and "reasoning_content" not in message:
        return {**message, traits.reasoning_field: ""}
    return message


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _with_ids(messages: list[Message], long: bool) -> list[Message]:
    """Give calls and results the ids that they lack; with `long`, also those whose id is not nine letters and digits, which
    some templates require. Results are matched by id, else by order."""
    renamed: dict[str, str] = {}
    waiting: list[str] = []
    out: list[Message] = []
    count = 0
    for message in messages:
        if message["role"] == "assistant" and "tool_calls" in message:
            calls = []
            for call in message["tool_calls"]:
                count += 1
                old = call.get("id")
                new = old if old and (not long or LONG_ID.fullmatch(old)) else f"call{count:05d}"
                waiting.append(new)
                if old:
                    renamed[old] = new
                calls.append(call if new == old else {**call, "id": new})
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            named = renamed.get(message.get("tool_call_id") or "")
            target = named if named in waiting else (waiting[0] if waiting else f"call{count:05d}")
            if target in waiting:
                waiting.remove(target)
            message = {**message, "tool_call_id": target}
        out.append(message)
    return out
