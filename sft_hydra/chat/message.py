"""Normalizes one message of a chat row: `check_message`.

Invariant: the result has string contents, `reasoning_content` only if the message has reasoning, tool calls in OpenAI's form
with arguments as objects, and `weight` 0 if a flag marks it as context. Anything else raises RowError with a reason.
"""

import json
from typing import Any

import orjson

from sft_hydra.chat.calls import parse_json, read_call
from sft_hydra.chat.flags import FLAGS, message_weight
from sft_hydra.chat.reasoning import KEYS, split_content, take_reasoning
from sft_hydra.chat.roles import CALLS, ROLES, role_of
from sft_hydra.errors import RowError
from sft_hydra.records import Message

PLAIN = frozenset({"role", "content", "name", "tool_call_id"})
CALL_KEYS = ("tool_calls", "function_call", "function_calls", "toolCalls", "tool_call")
OF_CALLS, OF_REASONING = frozenset(CALL_KEYS), frozenset(KEYS)


def check_message(message: Any) -> Message:
    """The normalized message (`records.Message`). Raises RowError."""
    if not isinstance(message, dict):
        raise RowError("format", f"a message must be an object, not {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if type(content) is str and type(role) is str and role in ROLES:  # most messages are normalized already
        if len(message) == 2:
            if role != "assistant" or "</think>" not in content:
                return message
        elif role != "assistant" and PLAIN.issuperset(message) and None not in message.values():
            return message
    clean = {key: value for key, value in message.items() if value is not None}
    role = _named(clean)
    if role in CALLS:
        calls = clean.pop("content", None)
        clean |= {"role": "assistant", "content": "", "tool_calls": calls_in(calls)}
        role = "assistant"
    if role != "assistant":
        clean = {key: value for key, value in clean.items() if key not in FLAGS}
    if "content" in clean:
        clean["content"] = _text(clean["content"], role)
    elif role not in ("assistant", "system"):
        raise RowError("content", f"a {role} message has no content")
    if role == "assistant":
        _complete_assistant(clean)
    return clean


def _named(message: Message) -> str:
    """The role. ShareGPT's keys `from` and `value` become `role` and `content`."""
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or not role:
        raise RowError("role", f"a message's role must be text, not {role!r}")
    if "from" in message:
        message.pop("from")
    if "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    message["role"] = role = role_of(role)
    return role


def _text(content: Any, role: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict | str) for part in content):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        texts = [part.get("text", part.get("value") if part.get("type") == "text" else None) for part in parts]
        others = sorted(
            {str(part.get("type")) for part, text in zip(parts, texts, strict=True) if type(text) is not str}
        )
        if not others:
            return "".join(map(str, texts))
        if role != "tool":
            raise RowError("content", f"content parts of type {', '.join(others)} are not supported, only text")
    if role == "tool":  # results are often the JSON object that the tool returned
        return as_json(content)
    raise RowError("content", f"content of a {role} message must be text, not {type(content).__name__}")


def as_json(value: Any) -> str:
    """A value as compact JSON. Raises RowError for NaN and infinity."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer of more than 64 bits, a lone surrogate, or NaN
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:
            raise RowError("content", "NaN or infinity in a tool result is not valid JSON") from None


def _complete_assistant(message: Message) -> None:
    content = message.setdefault("content", "")
    if not content and isinstance(
        message.get("refusal"), str
    ):  # OpenAI keeps an answer that declines under its own key
        content = message["content"] = message.pop("refusal")
    reasoning = None if OF_REASONING.isdisjoint(message) else take_reasoning(message)
    calls = None if OF_CALLS.isdisjoint(message) else _take_calls(message)
    if "</think>" in content and not (reasoning and reasoning.strip()):
        inline, message["content"] = split_content(content, bool(calls))
        reasoning = inline if message["content"] != content else reasoning
    if reasoning:  # blank reasoning becomes "": the row belongs to a reasoning data set
        message["reasoning_content"] = "" if reasoning.isspace() else reasoning
    if calls:
        message["tool_calls"] = [read_call(call) for call in calls]
    if FLAGS.isdisjoint(message):
        return
    supervised = message_weight(message)
    for key in FLAGS.intersection(message) - {"weight"}:
        del message[key]
    if supervised is False:
        message["weight"] = 0


def _take_calls(message: Message) -> list[Any]:
    """Remove and return the tool calls of a message, under any of CALL_KEYS. Raises RowError if two keys differ."""
    found = {key: message[key] for key in CALL_KEYS if key in message}
    if "function_calls" in found and isinstance(found["function_calls"], str):
        del found["function_calls"]  # text that some templates print verbatim
    lists = []
    for key, calls in found.items():
        del message[key]
        if isinstance(calls, str) and key != "tool_call":
            calls = parse_json(calls) if calls.strip() else []
        if key in ("function_call", "tool_call"):  # the older form of OpenAI
            calls = [parse_json(calls) if isinstance(calls, str) else calls] if calls else []
        if not isinstance(calls, list):
            raise RowError("tool_calls", f"{key} must be a list, not {type(calls).__name__}")
        if calls and calls not in lists:
            lists.append(calls)
    if len(lists) > 1:
        raise RowError("tool_calls", f"{' and '.join(found)} of a message differ; keep one of them")
    return lists[0] if lists else []


def calls_in(value: Any) -> list[Any]:
    """The calls in the content of a message whose role is a call (`function_call`, ...). Raises RowError."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except RowError:
            raise RowError("tool_arguments", "the content of a function_call message is not JSON") from None
    return value if isinstance(value, list) else [value]
