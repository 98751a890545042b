"""One message of a chat row in the form that the rest of the house works with: `check_message`.

Invariant: what comes out has string contents, reasoning only where there is some, and tool calls of one shape with
arguments as objects; what does not fit is RowError with a reason.
"""

import json
import math
import re
from typing import Any

import orjson

from sft_hydra.errors import RowError
from sft_hydra.records import Message

DIGITS_AS_ZEROS = bytes(ord("0" if chr(byte) in "0123456789" else " ") for byte in range(256))
LONG_NUMBER = b"0" * 19
OPENED_REASONING = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
UNOPENED_REASONING = re.compile(r"(.*?)(?:\n</think>|</think>(?=\n|\Z))\s*", re.DOTALL)  # the prompt had opened it
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


class NoNumber(float):
    """NaN or an infinite number, which JSON does not have: a row that holds one where it matters is rejected."""


def parse_leniently(text: str | bytes) -> Any:
    """A JSON text by the standard library, which keeps long integers and lone surrogates; NaN and what is too large for
    a float become NoNumber. Raises ValueError or RecursionError."""
    return json.loads(text, parse_constant=NoNumber, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else NoNumber(value)


def has_long_number(text: bytes) -> bool:
    """True if a number of more than 64 bits may be in a JSON text, which only the standard library keeps. Twelve times as
    quick as a pattern."""
    return LONG_NUMBER in text.translate(DIGITS_AS_ZEROS)


def check_message(message: Any) -> Message:
    """One message in the form that the rest of the room works with. Raises RowError."""
    if not isinstance(message, dict):
        raise RowError("format", f"a message must be an object, not {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise RowError("role", f"a message's role must be text, not {role!r}")
    if type(content) is str:  # most messages are as they should be
        if len(message) == 2:
            if role != "assistant" or "</think>" not in content:
                return message
        elif role != "assistant" and None not in message.values():
            return message
    clean = {key: value for key, value in message.items() if value is not None}
    if "content" in clean:
        clean["content"] = _text(clean["content"], role)
    elif role not in ("assistant", "system"):
        raise RowError("content", f"a {role} message without content")
    if role == "assistant":
        _complete_assistant(clean)
    return clean


def _text(content: Any, role: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        others = sorted({str(part.get("type")) for part in content if not isinstance(part.get("text"), str)})
        if others:
            raise RowError("content", f"content parts that are not text: {', '.join(others)}")
        return "".join(part["text"] for part in content)
    if role == "tool":  # results are often given as the object that the tool returned
        return _as_json(content)
    raise RowError("content", f"content of a {role} message must be text, not {type(content).__name__}")


def _as_json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer of more than 64 bits, half a surrogate pair, or no number
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:
            raise RowError("content", "NaN or an infinite number in a result, which is no JSON") from None


def _complete_assistant(message: Message) -> None:
    content = message.setdefault("content", "")
    reasoning = next((message.pop(key) for key in REASONING_KEYS if key in message), None)
    if "</think>" in content and not (isinstance(reasoning, str) and reasoning.strip()):
        inline = OPENED_REASONING.match(content) or ("<think>" not in content and UNOPENED_REASONING.match(content))
        if inline:
            reasoning = inline[1].strip("\n") or None
            message["content"] = content[inline.end() :]
    if isinstance(reasoning, str) and reasoning:  # blank is kept as empty: the row is one of a reasoning data set
        message["reasoning_content"] = "" if reasoning.isspace() else reasoning
    if "function_call" in message:  # the older form of OpenAI
        message["tool_calls"] = [message.pop("function_call")]
    if "tool_calls" in message:
        calls = message["tool_calls"]
        if not isinstance(calls, list):
            raise RowError("tool_calls", f"tool_calls must be a list, not {type(calls).__name__}")
        message["tool_calls"] = [_call(call) for call in calls]
        if not calls:
            del message["tool_calls"]
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise RowError("weight", f"a message's weight must be 0 or 1, not {weight!r}")


def _call(call: Any) -> dict[str, Any]:
    """`{"type": "function", "function": {"name", "arguments": object}}`, from that or the flat form."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("tool_calls", "a tool call needs a function with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments) if arguments.strip() else {}
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError("tool_arguments", f"arguments must be an object, not {type(arguments).__name__}")
    if function is call:
        outer: dict[str, Any] = {"id": call["id"]} if "id" in call else {}
        return {**outer, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {**call, "function": {**function, "arguments": arguments}}


def parse_json(text: str) -> Any:
    try:
        long = has_long_number(text.encode("utf-8", "surrogatepass"))
        return parse_leniently(text) if long else orjson.loads(text)
    except ValueError as problem:
        raise RowError("tool_arguments", f"not JSON: {problem}") from None
