"""Adapts messages to what a template reads: contents as parts, arguments as text, reasoning under the template's key.

Invariant: the input messages are not modified; messages that need no change are returned as they are.
"""

import json
from collections.abc import Sequence
from typing import Any

from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.records import Message


def format_messages(messages: Sequence[Message], traits: TemplateTraits) -> list[Message]:
    """The messages of a Conversation in the form that this template reads. A new list; unchanged messages are shared."""
    messages = [_with_empty_reasoning(message, traits) for message in messages]
    if not traits.reshapes:
        return messages
    shaped = [_shape(message, traits) for message in messages]
    return _with_long_ids(shaped) if traits.long_ids else shaped


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
    if reasoning is None or traits.reasoning_field == "reasoning_content" or traits.opens_reasoning:
        return message
    message = {key: value for key, value in message.items() if key != "reasoning_content"}
    if not reasoning:
        return message
    if not traits.reasoning_field:  # reasoning is inline, or not rendered at all
        return {**message, "content": f"<think>\n{reasoning}\n</think>\n\n{message.get('content', '')}"}
    return {**message, traits.reasoning_field: reasoning}


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


def _with_long_ids(messages: list[Message]) -> list[Message]:
    """Rename call ids to nine letters and digits, which some templates require; results are matched by id, else by order."""
    renamed: dict[str, str] = {}
    waiting: list[str] = []
    out: list[Message] = []
    count = 0
    for message in messages:
        if message["role"] == "assistant" and "tool_calls" in message:
            calls = []
            for call in message["tool_calls"]:
                count += 1
                waiting.append(f"call{count:05d}")
                if call.get("id"):
                    renamed[call["id"]] = waiting[-1]
                calls.append({**call, "id": waiting[-1]})
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            named = renamed.get(message.get("tool_call_id") or "")
            target = named if named in waiting else (waiting[0] if waiting else f"call{count:05d}")
            if target in waiting:
                waiting.remove(target)
            message = {**message, "tool_call_id": target}
        out.append(message)
    return out
