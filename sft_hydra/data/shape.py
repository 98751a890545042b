"""A message in the shape its template wants: contents as parts, arguments as text, reasoning under the template's key.

Invariant: the message given is never changed, and is returned itself when it is right already.
"""

import json
from typing import TYPE_CHECKING

from sft_hydra.records import Message

if TYPE_CHECKING:
    from sft_hydra.data.probe import Habits


def shape_message(message: Message, habits: "Habits") -> Message:
    """`message` of a Conversation, as this template reads it."""
    if message["role"] == "assistant":
        message = _shape_reasoning(message, habits.reasoning_field)
        if habits.text_arguments and message.get("tool_calls"):
            message = {**message, "tool_calls": [_with_text_arguments(call) for call in message["tool_calls"]]}
    if habits.content_parts and isinstance(message.get("content"), str):
        message = {**message, "content": [{"type": "text", "text": message["content"]}]}
    return message


def _shape_reasoning(message: Message, field: str | None) -> Message:
    reasoning = message.get("reasoning_content")
    if field == "reasoning_content" or reasoning is None:
        return message
    message = {key: value for key, value in message.items() if key != "reasoning_content"}
    if not reasoning:
        return message
    if not field:  # inline, or rendered by no means
        return {**message, "content": f"<think>\n{reasoning}\n</think>\n\n{message.get('content', '')}"}
    return {**message, field: reasoning}


def _with_text_arguments(call: dict) -> dict:  # type: ignore[type-arg]
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
