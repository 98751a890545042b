"""Messages in the shape their template wants: contents as parts, arguments as text, reasoning under the template's key.

Invariant: the messages given are never changed, and are returned themselves when they are right already.
"""

import json
from collections.abc import Sequence
from typing import Any

from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.records import Message


def format_messages(messages: Sequence[Message], habits: TemplateTraits) -> list[Message]:
    """Messages of a Conversation, as this template reads them."""
    messages = [_with_empty_reasoning(message, habits) for message in messages]
    if not habits.reshapes:
        return messages
    shaped = [_shape(message, habits) for message in messages]
    return _with_long_ids(shaped) if habits.long_ids else shaped


def _shape(message: Message, habits: TemplateTraits) -> Message:
    if habits.developer_as_system and message["role"] == "developer":
        message = {**message, "role": "system"}
    if message["role"] == "assistant":
        message = _shape_reasoning(message, habits)
        if "tool_calls" in message:
            if habits.text_arguments:
                message = {**message, "tool_calls": [_with_text_arguments(call) for call in message["tool_calls"]]}
            if habits.empty_as_null and not message["content"]:
                message = {**message, "content": None}
    if habits.content_parts and isinstance(message.get("content"), str):
        message = {**message, "content": [{"type": "text", "text": message["content"]}]}
    return message


def _shape_reasoning(message: Message, habits: TemplateTraits) -> Message:
    reasoning = message.get("reasoning_content")
    if reasoning is None or habits.reasoning_field == "reasoning_content" or habits.opens_reasoning:
        return message
    message = {key: value for key, value in message.items() if key != "reasoning_content"}
    if not reasoning:
        return message
    if not habits.reasoning_field:  # inline, or rendered by no means
        return {**message, "content": f"<think>\n{reasoning}\n</think>\n\n{message.get('content', '')}"}
    return {**message, habits.reasoning_field: reasoning}


def _with_empty_reasoning(message: Message, habits: TemplateTraits) -> Message:
    """An answer that quotes `</think>` says that it has no reasoning: templates that read a field of their own then leave
    the content whole."""
    if message["role"] != "assistant" or "</think>" not in (message.get("content") or ""):
        return message
    if habits.reasoning_field and "reasoning_content" not in message:
        return {**message, habits.reasoning_field: ""}
    return message


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _with_long_ids(messages: list[Message]) -> list[Message]:
    """Call ids of nine letters and digits (some templates insist), results matched by id or else by order."""
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
            given = renamed.get(message.get("tool_call_id") or "")
            target = given if given in waiting else (waiting[0] if waiting else f"call{count:05d}")
            if target in waiting:
                waiting.remove(target)
            message = {**message, "tool_call_id": target}
        out.append(message)
    return out
