"""Parses generated text to an assistant message: reasoning, content and tool calls.

Reads <think> blocks and the two tool-call formats of the supported families: JSON (Hermes, Qwen) and <function=...> tags
(Nemotron, Qwen-Coder). Invariant: text that cannot be parsed as a call stays in the content, so no generated text is lost.
"""

import json
import re
from typing import Any

from sft_hydra.records import Message

THINK = re.compile(r"\s*<think>(.*?)(?:</think>|\Z)", re.DOTALL)
CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def parse_answer(text: str) -> Message:
    """A message with "role", "content" and, if present, "reasoning_content" and "tool_calls" (arguments as objects)."""
    message: Message = {"role": "assistant"}
    thought = THINK.match(text)
    if thought:
        text = text[thought.end() :]
        if thought[1].strip():
            message["reasoning_content"] = thought[1].strip()
    calls: list[dict[str, Any]] = []

    def take(match: re.Match[str]) -> str:
        function = _function(match[1])
        if function is None:
            return match[0]
        calls.append({"id": f"call_{len(calls) + 1}", "type": "function", "function": function})
        return ""

    message["content"] = CALL.sub(take, text).strip()
    if calls:
        message["tool_calls"] = calls
    return message


def _function(text: str) -> dict[str, Any] | None:
    tags = FUNCTION.fullmatch(text)
    if tags:
        return {"name": tags[1].strip(), "arguments": {key: _value(value) for key, value in PARAMETER.findall(tags[2])}}
    call = _value(text)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    return {"name": call["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def _value(text: str) -> Any:
    """The parsed JSON value, else the text. NaN and Infinity are not accepted as JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(name: str) -> None:
    raise ValueError(name)
